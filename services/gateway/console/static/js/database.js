/** The browser's own store (IndexedDB): runs and conversations. Where it is closed (private windows), nothing is kept. */

const STORES = ["runs", "chats"];

let opened;

function openDatabase() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("fovea", 1);
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name, { keyPath: "id" }));
    request.onsuccess = () => resolve(Object.assign(request.result, { onclose: () => (opened = undefined) }));
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function ask(store, mode, act) {
  const database = await openDatabase();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(store, mode);
    const request = act(transaction.objectStore(store));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error); // a full disk is known only here, after the request's success
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
