/**
 * Runs the network in a thread of its own: on the graphics card by WebGPU, else on the processor by
 * WebAssembly.
 *
 * Message: { weights, images, height, width }. Answer: { restored, backend } or { error }.
 */
const BACKENDS = {
  webgpu: "./runtime/ort.webgpu.min.mjs",
  wasm: "./runtime/ort.wasm.min.mjs",
};
const MAX_THREADS = 8; // each is one more worker

let engine; // { ort, backend }
let session; // of the weights used last
let loaded; // their address

self.onmessage = async ({ data }) => {
  try {
    const restored = await restore(data);
    self.postMessage({ restored, backend: engine.backend }, [restored.buffer]);
  } catch (error) {
    self.postMessage({ error: String(error.message ?? error) });
  }
};

async function restore(request) {
  engine ??= await open((await hasGraphicsCard()) ? "webgpu" : "wasm");
  try {
    return await run(request);
  } catch (error) {
    if (engine.backend === "wasm") throw error;
    // Drivers fail in many ways; the processor always works.
    engine = await open("wasm");
    session = loaded = undefined;
    return run(request);
  }
}

/** Whether WebGPU works here; `?backend=wasm` in the page's address says no. */
async function hasGraphicsCard() {
  if (new URLSearchParams(self.location.search).get("backend") === "wasm") return false;
  return Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
}

async function open(backend) {
  const ort = await import(BACKENDS[backend]);
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.min(navigator.hardwareConcurrency, MAX_THREADS)
    : 1;
  return { ort, backend };
}

async function load(address) {
  const response = await fetch(address).catch(() => null);
  if (!response?.ok) throw new Error("its weights could not be loaded; is there a connection?");
  return new Uint8Array(await response.arrayBuffer());
}

async function run({ weights, images, height, width }) {
  const { ort, backend } = engine;
  if (loaded !== weights) {
    await session?.release();
    session = loaded = undefined;
    session = await ort.InferenceSession.create(await load(weights), {
      executionProviders: [backend],
      enableMemPattern: false, // sizes of tiles vary
    });
    loaded = weights;
  }
  const input = new ort.Tensor("float32", images, [1, height, width, 3]);
  const { restored } = await session.run({ images: input });
  if (restored.data.some(Number.isNaN)) throw new Error("the network returned invalid numbers");
  return restored.data;
}
