/** A conversation as a tree: editing a question or asking for another answer begins a branch, and nothing is lost. */

export const createId = () => crypto.randomUUID?.() ?? String(Math.random()).slice(2);

export class Conversation {
  constructor(stored) {
    Object.assign(this, stored ?? { id: createId(), title: "", time: new Date().toISOString(), nodes: [], leaf: null });
  }

  find(id) {
    return this.nodes.find((node) => node.id === id) ?? null;
  }

  /** Add a turn behind the present one and make it the present one. */
  add(role, facts) {
    const node = { id: (this.nodes.at(-1)?.id ?? -1) + 1, parent: this.leaf, role, ...facts };
    this.nodes.push(node);
    this.leaf = node.id;
    if (role === "user" && !this.title) this.title = facts.content.slice(0, 80);
    return node;
  }

  /** The turns from the first to the present one. */
  path() {
    const found = [];
    for (let node = this.find(this.leaf); node; node = this.find(node.parent)) found.unshift(node);
    return found;
  }

  /** The turns that stand in the same place, oldest first. */
  siblings(node) {
    return this.nodes.filter(({ parent, role }) => parent === node.parent && role === node.role);
  }

  /** Make a turn and the newest behind it the present ones. */
  choose(node) {
    let last = node;
    for (;;) {
      const next = this.nodes.filter(({ parent }) => parent === last.id).at(-1);
      if (!next) break;
      last = next;
    }
    this.leaf = last.id;
  }

  /** Go back to before a turn: what is added next is a branch beside it. */
  leave(node) {
    this.leaf = node.parent;
  }

  /** Remove the present turn, which led to nothing; the newest in its place is the present one then, and is returned. */
  undo(node) {
    this.nodes = this.nodes.filter(({ id }) => id !== node.id);
    this.leaf = node.parent;
    const other = this.siblings(node).at(-1);
    if (other) this.choose(other);
    return other;
  }

  /** Messages of the path for a request; `column` says whose answers of two go on. */
  messages(column = 0) {
    return this.path().filter(({ role, contents, content }) => role === "user" || contents?.some(Boolean) || content).map((node) => ({
      role: node.role, content: node.role === "user" ? node.content : node.contents[column] || (node.contents.find(Boolean) ?? ""),
    }));
  }
}
