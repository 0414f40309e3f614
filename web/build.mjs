// Copies ONNX Runtime's programs for browsers beside the page that loads them. WebAssembly is
// packed: the page unpacks it itself, whatever the host does.

import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const from = join(here, "node_modules", "onnxruntime-web");
const to = join(here, "..", "student_jax", "demo", "page", "runtime");
const { version } = JSON.parse(readFileSync(join(from, "package.json")));

rmSync(to, { recursive: true, force: true });
mkdirSync(to, { recursive: true });
for (const name of ["ort.wasm.bundle.min.mjs", "ort.webgpu.bundle.min.mjs"]) {
  copyFileSync(join(from, "dist", name), join(to, name));
}
for (const name of ["ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.asyncify.wasm"]) {
  writeFileSync(join(to, `${name}.gz`), gzipSync(readFileSync(join(from, "dist", name)), { level: 9 }));
}
const bytes = statSync(join(to, "ort-wasm-simd-threaded.wasm.gz")).size;
writeFileSync(join(to, "runtime.json"), JSON.stringify({ version, bytes }) + "\n");
console.log(`ONNX Runtime ${version} is in ${to}`);
