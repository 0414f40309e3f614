// A worker that stylises pictures with the student's two ONNX files.

import { fittedStyle, fromBytes, mixed, resize, shrink, toBytes, workingSize } from "./pictures.js";

let ort, info, encodeStyle, stylize;
const encoded = new Map(); // what the student keeps of the styles that were used

/** The bytes of a file, unpacked if the host has not done that. */
async function read(url, onBytes = () => {}) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${new URL(response.url).pathname} failed to load (${response.status})`);
  const reader = response.body.getReader(), parts = [];
  for (let part; !(part = await reader.read()).done; ) {
    parts.push(part.value);
    onBytes(part.value.length);
  }
  const blob = new Blob(parts);
  const [first, second] = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  if (first !== 0x1f || second !== 0x8b) return new Uint8Array(await blob.arrayBuffer());
  const unpacked = blob.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

async function hasWebGPU() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

async function start(provider, models, version, onBytes) {
  const name = provider === "webgpu" ? "ort.webgpu.bundle.min.mjs" : "ort.wasm.bundle.min.mjs";
  const binary = provider === "webgpu" ? "asyncify.wasm.gz" : "wasm.gz";
  ort = await import(`./runtime/${name}?v=${version}`);
  ort.env.wasm.wasmBinary = await read(`./runtime/ort-wasm-simd-threaded.${binary}?v=${version}`, onBytes);
  // Threads share memory, which browsers allow to isolated pages alone.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(info.threads ?? 4, navigator.hardwareConcurrency) : 1;
  const options = { executionProviders: [provider] };
  [encodeStyle, stylize] = [
    await ort.InferenceSession.create(models[0], options),
    await ort.InferenceSession.create(models[1], options),
  ];
}

async function load(message) {
  info = message.info;
  let received = 0;
  const onBytes = count => {
    received += count;
    postMessage({ type: "progress", received });
  };
  const models = await Promise.all(
    [info.files.encode_style, info.files.stylize].map(({ url }) => read(url, onBytes)),
  );
  const providers = (await hasWebGPU()) && message.webgpu ? ["webgpu", "wasm"] : ["wasm"];
  for (const [i, provider] of providers.entries()) {
    try {
      await start(provider, models, info.runtime, onBytes);
      const threads = provider === "wasm" ? ort.env.wasm.numThreads : 0;
      return postMessage({ type: "ready", provider, threads });
    } catch (error) {
      if (i === providers.length - 1) throw error;
    }
  }
}

function tensor({ data, height, width }) {
  return new ort.Tensor("float32", data, [1, height, width, 3]);
}

async function memoryOf({ key, bytes }) {
  if (!encoded.has(key)) {
    const style = fittedStyle(fromBytes(bytes), info);
    const outputs = await encodeStyle.run({ style: tensor(style) });
    if (encoded.size >= 16) encoded.delete(encoded.keys().next().value);
    encoded.set(key, Object.fromEntries(info.memory.map(name => [name, outputs[name]])));
  }
  return encoded.get(key);
}

const GOLDEN_RATIO = (Math.sqrt(5) - 1) / 2;

/** Several styles as one, as the student mixes them: means of vectors [1 c], and in sets of rows
 * [1 n c] rows of each style, row i of the one in whose share the fraction of i golden ratios falls. */
function mixture(memories, weights) {
  if (memories.length === 1) return memories[0];
  const ends = weights.map((_, i) => weights.slice(0, i + 1).reduce((a, b) => a + b));
  const result = {};
  for (const name of info.memory) {
    const { dims } = memories[0][name];
    const data = new Float32Array(memories[0][name].data.length);
    if (dims.length === 2) {
      memories.forEach((memory, i) => memory[name].data.forEach((x, k) => (data[k] += weights[i] * x)));
    } else {
      const [, rows, width] = dims;
      for (let row = 0; row < rows; row++) {
        const place = (row * GOLDEN_RATIO) % 1;
        const chosen = memories[ends.findIndex(end => place < end)] ?? memories.at(-1);
        data.set(chosen[name].data.subarray(row * width, (row + 1) * width), row * width);
      }
    }
    result[name] = new ort.Tensor("float32", data, dims);
  }
  return result;
}

async function stylise({ content: bytes, styles, weights, size, stroke, strength, preserve }) {
  const start = performance.now();
  const content = shrink(fromBytes(bytes), size);
  const working = resize(content, ...workingSize(content, stroke));
  const least = info.content_stride + 1;
  if (Math.min(working.height, working.width) < least) {
    throw new Error(`the photo is too small for this stroke size; it needs sides of ${least} px`);
  }
  const memories = [];
  for (const style of styles) memories.push(await memoryOf(style));
  const { stylised } = await stylize.run({ content: tensor(working), ...mixture(memories, weights) });
  const prediction = { data: await stylised.getData(), height: working.height, width: working.width };
  stylised.dispose();
  const result = toBytes(mixed(content, resize(prediction, content.height, content.width), strength, preserve));
  const before = toBytes(content);
  postMessage({ type: "stylised", result, before, seconds: (performance.now() - start) / 1000 }, [
    result.data.buffer,
    before.data.buffer,
  ]);
}

onmessage = async ({ data: message }) => {
  try {
    await { load, stylise }[message.type](message);
  } catch (error) {
    postMessage({ type: "failed", during: message.type, message: String(error?.message ?? error) });
  }
};
