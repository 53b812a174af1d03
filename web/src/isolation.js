/**
 * Service worker that adds two headers, without which browsers give WebAssembly a single thread.
 * Hosts such as GitHub Pages cannot be told to send them.
 */
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => event.respondWith(isolated(event.request)));

async function isolated(request) {
  const response = await fetch(request);
  if (!response.ok) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, { headers });
}
