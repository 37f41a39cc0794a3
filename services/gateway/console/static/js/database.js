/** The browser's own store (IndexedDB): runs and conversations. Where it is closed (private windows), nothing is kept. */

const STORES = ["runs", "chats"];

let opened;

function openDatabase() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("fovea", 1);
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name, { keyPath: "id" }));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function ask(store, mode, act) {
  const database = await openDatabase();
  return new Promise((resolve, reject) => {
    const request = act(database.transaction(store, mode).objectStore(store));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Records of a store by id. */
export const records = (store) => ({
  put: (record) => ask(store, "readwrite", (all) => all.put(record)),
  get: (id) => ask(store, "readonly", (all) => all.get(id)),
  list: () => ask(store, "readonly", (all) => all.getAll()),
  remove: (id) => ask(store, "readwrite", (all) => all.delete(id)),
  clear: () => ask(store, "readwrite", (all) => all.clear()),
});
