/** The network, in a worker that starts with the first tile. */

let worker;

/**
 * Restores one tile; the next call has to wait for the answer.
 *
 * @param weights name of the weights.
 * @param images RGB floats in [0, 1], height x width x 3.
 * @returns a promise of { restored, backend }.
 */
export function restore(weights, images, height, width) {
  worker ??= new Worker(`network_worker.js${location.search}`, { type: "module" });
  return new Promise((resolve, reject) => {
    const fail = (reason) => {
      worker.terminate(); // its memory may be full; the next call starts another
      worker = undefined;
      reject(new Error(reason));
    };
    worker.onmessage = ({ data }) => (data.error ? fail(data.error) : resolve(data));
    worker.onerror = () => fail("it could not be loaded; is there a connection?");
    worker.postMessage({ weights: `weights/${weights}.onnx`, images, height, width });
  });
}
