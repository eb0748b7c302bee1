"""Foreign recordings become datasets; `robot_cl.data.importers.detect` picks the reader by content."""
