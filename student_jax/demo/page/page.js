// The page: pictures and settings in, one engine that stylises, the result beside the photo.

const $ = id => document.getElementById(id);
const slots = Object.fromEntries(
  [...document.querySelectorAll("[data-slot]")].map(element => [element.dataset.slot, element]),
);
const MAX_PIXELS = 60e6;
const MAX_BYTES = 60e6;
const chosen = { content: null, style: null, second: null }; // { blob, url, key, sample }
let info, engine;

function fail(message) {
  $("error").textContent = message ? message[0].toUpperCase() + message.slice(1).replace(/\.?$/, ".") : "";
}

function status(text, share) {
  const [words, bar] = $("status").children;
  words.textContent = text;
  bar.hidden = share === undefined;
  if (share !== undefined) bar.value = share;
}

const megabytes = bytes => (bytes / 1e6).toFixed(1);

// Pictures ----------------------------------------------------------------------------------------

/** The size of a picture that the browser can read; nothing is decoded yet in most browsers. */
async function measured(url, name) {
  const image = new Image();
  image.src = url;
  try {
    await new Promise((resolve, reject) => ((image.onload = resolve), (image.onerror = reject)));
  } catch {
    const heic = /\.hei[cf]$/i.test(name) ? "HEIC pictures" : "this file";
    throw new Error(`cannot read ${name}: this browser does not know ${heic}; save it as JPEG or PNG`);
  }
  return image;
}

async function choose(slot, blob, name, sample) {
  fail("");
  const url = URL.createObjectURL(blob);
  try {
    if (blob.size > MAX_BYTES) throw new Error(`${name} has ${megabytes(blob.size)} MB; the limit is ${MAX_BYTES / 1e6} MB`);
    const { naturalWidth: width, naturalHeight: height } = await measured(url, name);
    if (width * height > MAX_PIXELS) {
      throw new Error(
        `${name} has ${Math.round((width * height) / 1e6)} megapixels; the limit is ${MAX_PIXELS / 1e6}: make it smaller`,
      );
    }
  } catch (error) {
    URL.revokeObjectURL(url);
    fail(error.message);
    return;
  }
  clear(slot);
  chosen[slot] = { blob, url, key: sample ?? crypto.randomUUID?.() ?? String(Math.random()), sample };
  const preview = slots[slot].querySelector(".preview");
  preview.src = url;
  preview.hidden = false;
  slots[slot].querySelector(".drop span").textContent = name;
  showRemove(slot);
  for (const button of slots[slot].querySelectorAll(".samples button")) {
    button.setAttribute("aria-pressed", button.dataset.sample === sample);
  }
}

function clear(slot) {
  if (chosen[slot]) URL.revokeObjectURL(chosen[slot].url);
  chosen[slot] = null;
  const { prompt } = slots[slot].dataset;
  slots[slot].querySelector(".preview").hidden = true;
  slots[slot].querySelector(".drop span").textContent = prompt;
  for (const button of slots[slot].querySelectorAll(".samples button")) button.setAttribute("aria-pressed", false);
  showRemove(slot);
}

function showRemove(slot) {
  const remove = slots[slot].querySelector(".remove");
  if (remove) remove.hidden = !chosen[slot];
}

async function bytesOf({ blob }) {
  const bitmap = await createImageBitmap(blob);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
  return { data, width, height };
}

async function urlOf({ data, width, height }) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  return URL.createObjectURL(await new Promise(resolve => canvas.toBlob(resolve, "image/png")));
}

// Engines: each has stylise(settings) -> { after, before, seconds }, two URLs of pictures -----------

/** The student in this browser, in a worker. */
class BrowserEngine {
  constructor() {
    this.worker = new Worker("engine.js", { type: "module" });
    this.worker.onmessage = ({ data }) => this.receive(data);
    // What the worker cannot even start with: a script that fails to load.
    this.worker.onerror = () => this.receive({ type: "failed", message: "the program of this page failed to load" });
  }

  receive(message) {
    if (message.type === "progress") {
      const { received } = message;
      status(`Loading the model: ${megabytes(received)} MB`, Math.min(1, received / info.bytes));
      return;
    }
    const { resolve, reject } = this.waiting;
    if (message.type === "failed") reject(new Error(message.message));
    else resolve(message);
  }

  ask(message, transfer = []) {
    return new Promise((resolve, reject) => {
      this.waiting = { resolve, reject };
      this.worker.postMessage(message, transfer);
    });
  }

  async load() {
    try {
      const webgpu = !new URLSearchParams(location.search).has("wasm");
      const { provider, threads } = await this.ask({ type: "load", info, webgpu });
      return provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
    } catch (error) {
      this.worker.terminate();
      throw new Error(`the model did not load: ${error.message}; check the connection and reload the page`);
    }
  }

  async stylise(settings) {
    const content = await bytesOf(chosen.content);
    const styles = [];
    for (const { picture } of settings.styles) styles.push({ key: picture.key, bytes: await bytesOf(picture) });
    const { size, stroke, strength, preserve } = settings;
    const message = { type: "stylise", content, styles, size, stroke, strength, preserve };
    try {
      const answer = await this.ask({ ...message, weights: settings.styles.map(({ weight }) => weight) });
      return { after: await urlOf(answer.result), before: await urlOf(answer.before), seconds: answer.seconds };
    } catch (error) {
      if (/memory|alloc|OOM|out of bounds/i.test(error.message)) {
        engine = null; // a runtime that ran out of memory does not recover
        this.worker.terminate();
        throw new Error("there is not enough memory for this size; choose a smaller shorter side");
      }
      throw error;
    }
  }
}

/** The Python program that serves this page. */
class ServerEngine {
  async load() {
    return "Python on this machine";
  }

  async stylise({ styles, size, stroke, strength, preserve }) {
    const start = performance.now();
    const response = await fetch("stylise", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        content: await this.encoded(chosen.content),
        styles: await Promise.all(styles.map(({ picture }) => this.encoded(picture))),
        blend: styles[1]?.weight ?? 0,
        size,
        stroke_size: stroke,
        strength,
        preserve_colour: preserve,
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error);
    const after = URL.createObjectURL(await response.blob());
    return { after, before: URL.createObjectURL(chosen.content.blob), seconds: (performance.now() - start) / 1000 };
  }

  encoded({ blob, sample }) {
    if (sample) return `sample:${sample}`;
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new Error("the picture cannot be read any more; choose it again"));
      reader.readAsDataURL(blob);
    });
  }
}

async function startEngine() {
  engine = info.engine === "python" ? new ServerEngine() : new BrowserEngine();
  status("Loading the model…");
  status(`Ready: ${await engine.load()}.`);
}

// Actions -----------------------------------------------------------------------------------------

function settings() {
  const blend = Number($("blend").value) / 100;
  const styles = [{ picture: chosen.style, weight: chosen.second ? 1 - blend : 1 }];
  if (chosen.second) styles.push({ picture: chosen.second, weight: blend });
  return {
    styles,
    size: Number($("size").value),
    stroke: Number($("stroke").value),
    strength: Number($("strength").value) / 100,
    preserve: $("preserve").checked,
  };
}

async function show({ after, before, seconds }) {
  for (const [id, url] of Object.entries({ after, before })) {
    if ($(id).src) URL.revokeObjectURL($(id).src);
    $(id).src = url;
  }
  await Promise.all([$("after").decode(), $("before").decode()]);
  $("download").href = after;
  $("empty").hidden = true;
  $("view").hidden = $("caption").hidden = false;
  $("facts").dataset.seconds = seconds; // benchmarks/page.py reads it
  $("facts").textContent = `${$("after").naturalWidth} × ${$("after").naturalHeight} px, ${seconds.toFixed(1)} s`;
}

$("form").onsubmit = async event => {
  event.preventDefault();
  fail("");
  if (!chosen.content || !chosen.style) {
    fail(`choose a ${chosen.content ? "style" : "photo"}`);
    return;
  }
  $("go").disabled = true;
  const label = $("go").textContent;
  $("go").textContent = "Stylising…";
  try {
    if (!engine) await startEngine();
    await show(await engine.stylise(settings()));
    if (innerWidth <= 820) $("view").scrollIntoView({ block: "nearest" });
  } catch (error) {
    fail(error.message);
  } finally {
    $("go").textContent = label;
    $("go").disabled = false;
  }
};

for (const [slot, element] of Object.entries(slots)) {
  const drop = element.querySelector(".drop"), input = drop.querySelector("input");
  element.dataset.prompt = drop.querySelector("span").textContent;
  input.onchange = () => {
    const [file] = input.files;
    if (file) choose(slot, file, file.name);
    input.value = ""; // the same file may be chosen again
  };
  drop.ondragover = event => {
    event.preventDefault();
    drop.classList.add("over");
  };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = event => {
    event.preventDefault();
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) choose(slot, file, file.name);
    else fail("drop a picture file");
  };
}
slots.second.querySelector(".remove").onclick = () => clear("second");

for (const range of document.querySelectorAll(".range input")) {
  range.oninput = () => (range.parentNode.querySelector("output").textContent = range.value + range.dataset.unit);
}

$("compare").oninput = () => {
  const { value } = $("compare");
  $("before").style.clipPath = `inset(0 ${100 - value}% 0 0)`;
  $("edge").style.left = `${value}%`;
};

// Camera ------------------------------------------------------------------------------------------

const video = $("camera").querySelector("video");
slots.content.querySelector(".camera").onclick = async () => {
  fail("");
  try {
    if (!navigator.mediaDevices) throw new Error();
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("camera").showModal();
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    fail(denied ? "this page may not use the camera: allow it in the browser, or choose a file" : "there is no camera to use; choose a file");
  }
};
$("camera").onclose = () => {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
};
$("cancel").onclick = () => $("camera").close();
$("shoot").onclick = () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  $("camera").close();
  canvas.toBlob(blob => choose("content", blob, "Camera picture"), "image/jpeg", 0.95);
};

// Start -------------------------------------------------------------------------------------------

function listSamples() {
  for (const [slot, element] of Object.entries(slots)) {
    const kind = slot === "content" ? "content" : "style";
    for (const sample of info.samples[kind]) {
      const name = sample.replace(/\.\w+$/, "").replaceAll("_", " ");
      const button = document.createElement("button");
      Object.assign(button, { type: "button", title: name });
      button.dataset.sample = sample;
      button.setAttribute("aria-pressed", false);
      const image = new Image();
      Object.assign(image, { src: `samples/${kind}/${encodeURIComponent(sample)}`, alt: name, loading: "lazy" });
      button.append(image);
      button.onclick = async () => {
        const pressed = button.getAttribute("aria-pressed") === "true";
        if (pressed && slot === "second") return clear(slot);
        try {
          choose(slot, await (await fetch(image.src)).blob(), name, sample);
        } catch {
          fail("the sample did not load; check the connection");
        }
      };
      element.querySelector(".samples").append(button);
    }
  }
}

/** Keep the page, its program and the model in the browser, for the next visit and offline. */
async function keepOffline() {
  if (!navigator.serviceWorker) return;
  try {
    await navigator.serviceWorker.register("service_worker.js", { type: "module" });
    if (navigator.serviceWorker.controller) return;
    await new Promise(resolve => {
      navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true });
      setTimeout(resolve, 3000);
    });
  } catch {
    // A browser that keeps nothing, as in private windows: everything else works.
  }
}

async function start() {
  try {
    const response = await fetch("model.json");
    if (!response.ok) throw new Error();
    info = await response.json();
  } catch {
    fail("the page's description of the model did not load; check the connection and reload the page");
    return;
  }
  const where = info.engine === "python" ? "by the Python program on this machine" : "in this browser";
  $("privacy").textContent += ` Everything is computed ${where}: your pictures stay here.`;
  slots.second.hidden = !info.mixes;
  for (const option of [...$("size").options]) {
    if (Number(option.value) > info.max_size) option.remove();
  }
  listSamples();
  if (info.engine !== "python") await keepOffline();
  try {
    await startEngine();
  } catch (error) {
    engine = null; // the next try starts again
    status("");
    fail(error.message);
  }
  $("go").disabled = false;
}

start();
