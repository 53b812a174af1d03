/** Builds the page into dist/: the files of src/, ONNX Runtime Web, and the weights as ONNX files. */
import { execFileSync } from "node:child_process";
import { cpSync, rmSync } from "node:fs";
import { join } from "node:path";
import { WEIGHTS } from "./src/weights.js";

const WEB = import.meta.dirname;
const DIST = join(WEB, "dist");
const RUNTIME = [
  "ort.wasm.min.mjs",
  "ort-wasm-simd-threaded.mjs",
  "ort-wasm-simd-threaded.wasm",
  "ort.webgpu.min.mjs",
  "ort-wasm-simd-threaded.asyncify.mjs",
  "ort-wasm-simd-threaded.asyncify.wasm",
];

rmSync(DIST, { recursive: true, force: true });
cpSync(join(WEB, "src"), DIST, { recursive: true });
for (const file of RUNTIME) {
  cpSync(join(WEB, "node_modules/onnxruntime-web/dist", file), join(DIST, "runtime", file));
}
for (const { name } of WEIGHTS) {
  const out = join(DIST, "weights", `${name}.onnx`);
  const command = ["-m", "manas_jax.inference.export", name, "--format", "onnx", "--out", out];
  execFileSync(process.env.PYTHON ?? "python", command, { cwd: join(WEB, ".."), stdio: "inherit" });
}
