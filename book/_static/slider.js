// Each <figure class="slider"> holds the frames of one slider: its controls choose which of them is shown.
// Frame i is the file i.webp in data-folder; the last control changes fastest. Without this script the still stays.

for (const figure of document.querySelectorAll("figure.slider")) {
  const frames = JSON.parse(figure.dataset.frames);
  const inputs = [...figure.querySelectorAll("input")];
  const picture = figure.querySelector("img.frame");
  const problem = figure.querySelector("[role=alert]");
  const url = (i) => `${figure.dataset.folder}/${i}.webp`;

  const show = () => {
    let i = 0;
    for (const input of inputs) {
      const label = JSON.parse(input.dataset.stops)[input.value];
      input.nextElementSibling.value = label;
      input.setAttribute("aria-valuetext", label);
      i = i * (Number(input.max) + 1) + Number(input.value);
    }
    problem.hidden = !frames[i].problem;
    problem.textContent = frames[i].problem ? `The picture could not be drawn. ${frames[i].problem}` : "";
    if (!frames[i].problem) {
      picture.width = frames[i].width;
      picture.src = url(i);
    }
  };

  const load = () => frames.forEach((frame, i) => frame.problem || (new Image().src = url(i)));
  for (const input of inputs) input.addEventListener("input", show);
  for (const event of ["focusin", "pointerover"]) figure.addEventListener(event, load, { once: true });
  picture.loading = "lazy";
  show();
  figure.classList.add("live");
  figure.querySelector(".controls").hidden = picture.hidden = false;
}
