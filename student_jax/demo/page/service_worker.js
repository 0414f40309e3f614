// Keeps what the page loaded, so that it starts at once and works offline, and isolates the page,
// which lets WebAssembly use threads on hosts that send no such headers.

const CACHE = "style-distil";
const PAGE = ["./", "page.css", "page.js", "engine.js", "pictures.js", "model.json", "icon.svg"];

addEventListener("install", event => {
  skipWaiting();
  event.waitUntil(caches.open(CACHE).then(cache => cache.addAll(PAGE)));
});

addEventListener("activate", event => event.waitUntil(clients.claim()));

addEventListener("fetch", event => {
  const { method, url } = event.request;
  if (method === "GET" && new URL(url).origin === location.origin) event.respondWith(answer(event.request));
});

async function answer(request) {
  const cache = await caches.open(CACHE);
  const url = new URL(request.url);
  // A file with a version in its name never changes.
  const isVersioned = url.searchParams.has("v");
  if (isVersioned) {
    const kept = await cache.match(request);
    if (kept) return isolated(kept);
  }
  try {
    const response = await fetch(request);
    if (response.ok && response.status === 200) {
      if (isVersioned) await cache.delete(request, { ignoreSearch: true });
      await cache.put(request, response.clone()).catch(() => {}); // no room: it still works online
    }
    return isolated(response);
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: !isVersioned });
    if (kept) return isolated(kept);
    throw error;
  }
}

function isolated(response) {
  if (response.type === "opaque" || response.status === 0 || response.redirected) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
