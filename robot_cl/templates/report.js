// The line under a film moves with it.
for (const strip of document.querySelectorAll("svg.strip")) {
  const video = strip.parentElement.querySelector("video"), line = strip.querySelector(".playhead");
  const {left, right, seconds} = strip.dataset;
  const move = () => {
    const x = +left + Math.min(video.currentTime / +seconds, 1) * (right - left);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    requestAnimationFrame(move);
  };
  if (video) move();
}
