import os

# Read when torch is imported. By default its threads wait for each other by spinning for milliseconds: where other
# programs have the cores, each product waits for one that does not run (2,000 updates took 317 s, with this 10 s; where
# nobody else works it costs a tenth).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
