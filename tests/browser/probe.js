// What the tests ask of JupyterLab's page, beside what a reader can do there. Loaded before the page; see lab.py.
// `jupyterapp` is JupyterLab itself, which the server shows because of --expose-app-in-browser.
window.probe = (() => {
  const WIDGET_VIEW = "application/vnd.jupyter.widget-view+json";
  const QUIET = 300; // milliseconds without a change after which a page counts as settled
  const TYPESET = 60000; // milliseconds that mathematics may take to be set
  const LATE = 5000; // milliseconds after which no answer of an idle kernel is awaited any more
  const panel = () => jupyterapp.shell.currentWidget;
  const kernel = () => panel().sessionContext.session?.kernel;
  const cells = () => panel().content.widgets;
  const codeCells = () => [...cells().entries()].filter(([, cell]) => cell.model.type === "code");
  const outputs = (cell) => cell.model.outputs.toJSON();
  const nextFrame = () => new Promise(requestAnimationFrame);
  const box = (element) => element.getBoundingClientRect();

  // ---- running cells ----

  let finished = true;

  function start(command) {
    finished = false;
    const over = () => { finished = true; };
    jupyterapp.commands.execute(command).then(over, over);
  }

  function startCell(index) {
    panel().content.activeCellIndex = index;
    panel().content.deselectAll();
    start("notebook:run-cell");
  }

  // The index of the first cell that has yet to end, -1 where none shows it, null where all have ended.
  function running() {
    if (finished && kernel()?.status === "idle") return null;
    const waiting = codeCells().find(([, cell]) => cell.prompt === "*");
    return waiting ? waiting[0] : -1;
  }

  // Errors and stderr, cell by cell: [index, what].
  const problems = () => codeCells().flatMap(([index, cell]) => outputs(cell)
    .filter((output) => output.output_type === "error" || output.name === "stderr")
    .map((output) => [index, output.ename ? `${output.ename}: ${output.evalue}` : `stderr: ${output.text}`]));

  // What a cell printed to stdout.
  const printed = (index) => outputs(cells()[index]).filter((output) => output.name === "stdout")
    .map((output) => output.text).join("");

  // ---- widgets ----

  // Cells that show a widget, with the widget's model id and whether its picture can be seen.
  const widgetCells = () => codeCells().flatMap(([index, cell]) => outputs(cell)
    .filter((output) => output.data?.[WIDGET_VIEW])
    .map((output) => ({ index, model: output.data[WIDGET_VIEW].model_id, ready: !!picture(index)?.naturalWidth })));

  const brokenWidgets = () => codeCells().filter(([, cell]) =>
    /error (displaying|creating) widget|model not found|loading widget/i.test(cell.outputArea.node.innerText))
    .map(([index]) => index);

  async function widgetModels() {
    const reply = await kernel().requestCommInfo({ target_name: "jupyter.widget" });
    return Object.keys(reply.content.comms).length;
  }

  // The repr of an expression in the notebook's kernel; it leaves no trace in the notebook.
  async function ask(expression) {
    const content = { code: "", silent: true, store_history: false, user_expressions: { answer: expression } };
    const { answer } = (await kernel().requestExecute(content).done).content.user_expressions;
    if (answer.status !== "ok") throw new Error(`${expression}: ${answer.ename}: ${answer.evalue}`);
    return answer.data["text/plain"];
  }

  const tell = (code) => kernel().requestExecute({ code, silent: true, store_history: false }).done;

  const picture = (index) => cells()[index].outputArea.node.querySelector("img.widget-image");

  async function pixels(index) {
    const image = picture(index), canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-1", data));
    return `${canvas.width}x${canvas.height} ${Array.from(digest, (byte) => byte.toString(16)).join(" ")}`;
  }

  // ---- a picture under watch, from watch() to unwatch(): looked at in every frame that the browser paints ----

  let watched = null;

  function watch(index) {
    const area = cells()[index].outputArea.node, image = picture(index);
    const now = { image, area, key: null, shown: [], armed: performance.now(), changed: performance.now(), faults: new Set(), over: false };
    const [height, imageHeight] = [box(area).height, box(image).height];
    const keydown = (event) => { now.key = event.timeStamp; };
    const load = () => requestAnimationFrame(() => {
      now.changed = performance.now();
      now.shown.push(now.changed);
    });
    const observer = new MutationObserver((records) => {
      const removed = records.flatMap((record) => [...record.removedNodes]);
      if (removed.some((node) => node === image || node.contains?.(image))) now.faults.add("the picture was removed");
    });
    const look = () => {
      if (now.over) return;
      if (!image.isConnected) now.faults.add("the picture was not on the page");
      else if (box(image).height === 0) now.faults.add("the picture had no height");
      else if (Math.abs(box(image).height - imageHeight) > 1) {
        now.faults.add(`the picture's height changed from ${imageHeight} to ${box(image).height} pixels`);
      }
      if (Math.abs(box(area).height - height) > 1) {
        now.faults.add(`the height of the output changed from ${height} to ${box(area).height} pixels`);
      }
      requestAnimationFrame(look);
    };
    window.addEventListener("keydown", keydown, true);
    image.addEventListener("load", load);
    observer.observe(area, { childList: true, subtree: true });
    requestAnimationFrame(look);
    now.stop = () => {
      now.over = true;
      window.removeEventListener("keydown", keydown, true);
      image.removeEventListener("load", load);
      observer.disconnect();
    };
    watched = now;
  }

  function unwatch() {
    watched.stop();
    return [...watched.faults];
  }

  function arm() {
    watched.key = null;
    watched.shown = [];
    watched.armed = performance.now();
  }

  const shown = () => watched.shown.length;

  // Milliseconds from the last key to the first frame with a new picture, or null where none has come yet.
  const latency = () => watched.shown.length && watched.key !== null ? watched.shown[0] - watched.key : null;

  // A move after which no picture has come, and none will: it may look the same as the last one.
  const unanswered = () => kernel().status === "idle" && !watched.shown.length && performance.now() - watched.armed > LATE;

  // No new picture for a while, and nothing under way in the kernel.
  const settled = (quiet = QUIET) => kernel().status === "idle" && performance.now() - watched.changed > quiet;

  // ---- the page as a reader sees it ----

  // Wait until mathematics and pictures have taken their places.
  async function laidOut() {
    await Promise.all(cells().map((cell) => cell.ready));
    await Promise.all([...panel().node.querySelectorAll("img")].map((image) => image.decode().catch(() => {})));
    await mathematicsSet();
    await atRest(QUIET);
  }

  // MathJax is fetched with the first formula, and sets cell by cell. Where it never does, a test tells: nothing hangs.
  async function mathematicsSet() {
    const unset = (cell) => cell.model.type === "markdown" && cell.model.sharedModel.source.includes("$$") &&
      !cell.node.querySelector("mjx-container");
    const begun = performance.now();
    while (cells().some(unset) && performance.now() - begun < TYPESET) await nextFrame();
  }

  // The same with all hints, answers and solutions open.
  async function unfolded() {
    await laidOut();
    panel().node.querySelectorAll("details").forEach((details) => { details.open = true; });
    await laidOut();
  }

  // The page's height and formulas stay as they are.
  async function atRest(quiet) {
    let last = "", since = performance.now();
    while (performance.now() - since < quiet) {
      await nextFrame();
      const now = `${scroller().scrollHeight} ${document.querySelectorAll("mjx-container").length}`;
      if (now !== last) [last, since] = [now, performance.now()];
    }
  }

  const scroller = () => panel().node.querySelector(".jp-WindowedPanel-outer") ?? panel().content.node;

  // Pictures in outputs that can be seen: [index of the cell, description].
  const pictures = () => codeCells().flatMap(([index, cell]) => {
    const shown = [...cell.outputArea.node.querySelectorAll(".jp-RenderedImage img")].filter((image) => image.naturalWidth > 0);
    const described = outputs(cell).filter((output) => output.data?.["image/png"])
      .map((output) => output.metadata?.["image/png"]?.alt ?? "");
    return shown.map((_, i) => [index, described[i] ?? ""]);
  });

  async function scrollTo(top) {
    scroller().scrollTop = top;
    await atRest(100);
    return [scroller().scrollTop, scroller().clientHeight, scroller().scrollHeight];
  }

  const hasWidth = (element) => element.clientWidth > 0;
  const words = (text) => text.trim().replace(/\s+/g, " ").slice(0, 60);

  // What does not fit into its place: [index of the cell, what, how many pixels too wide].
  function tooWide() {
    const found = [];
    for (const [index, cell] of cells().entries()) {
      const source = words(cell.model.sharedModel.source);
      const places = cell.node.querySelectorAll(".jp-OutputArea-output, .jp-MarkdownOutput, .jp-RenderedText pre");
      for (const place of [...places].filter(hasWidth)) {
        const right = box(place).right;
        for (const image of place.querySelectorAll("img, svg, table, mjx-container")) {
          if (hasWidth(image) && box(image).right > right + 1) {
            const name = image.tagName.toLowerCase().replace("mjx-container", "formula");
            found.push([index, `${name} in ${source}`, box(image).right - right]);
          }
        }
        const excess = place.scrollWidth - place.clientWidth;
        if (excess > 1) found.push([index, words(place.innerText) || source, excess]);
      }
    }
    return found;
  }

  const badFormulas = () => [...cells().entries()].filter(([, cell]) =>
    cell.node.querySelector("mjx-merror, [data-mjx-error]")).map(([index]) => index);

  const formulas = () => document.querySelectorAll("mjx-container").length;

  return {
    panel, kernel, cells, start, startCell, running, problems, printed, widgetCells, brokenWidgets, widgetModels, ask, tell,
    pixels, watch, unwatch, arm, shown, latency, unanswered, settled, laidOut, unfolded, pictures, scrollTo, tooWide,
    badFormulas, formulas,
  };
})();
