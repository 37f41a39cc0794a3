/** Plots: labelled dots, values with their intervals, and columns. */

const FRAME = { left: 44, top: 10, width: 266, height: 200 };

/**
 * Draw points `{x, y, label}`. With `same` both axes have one scale, so that the diagonal means “equal”.
 */
export function scatter(part, name, points, { same = false } = {}) {
  const known = points.filter((point) => Number.isFinite(point.x) && Number.isFinite(point.y));
  const across = paddedRange(known.map((point) => point.x));
  const up = paddedRange(known.map((point) => point.y));
  const [x, y] = same ? [unite(across, up), unite(across, up)] : [across, up];
  part.part(`${name}-diagonal`).toggleAttribute("hidden", !same); // SVG has no `hidden` property
  for (const [axis, [low, high]] of [["x", x], ["y", y]]) {
    part.setText(`${name}-${axis}-low`, low.toFixed(2));
    part.setText(`${name}-${axis}-high`, high.toFixed(2));
  }
  part.part(`${name}-dots`).replaceChildren(...known.map((point, index) => createDot(part, point, x, y, index)));
}

function createDot(part, point, [left, right], [bottom, top], index) {
  const group = part.querySelector('template[data-part="dot"]').content.querySelector("g").cloneNode(true);
  const x = FRAME.left + ((point.x - left) / (right - left)) * FRAME.width;
  const y = FRAME.top + FRAME.height - ((point.y - bottom) / (top - bottom)) * FRAME.height;
  const [circle, text] = group.children;
  circle.setAttribute("cx", x);
  circle.setAttribute("cy", y);
  const isRight = x > FRAME.left + FRAME.width * 0.6;
  text.setAttribute("x", isRight ? x - 7 : x + 7);
  text.setAttribute("text-anchor", isRight ? "end" : "start");
  text.setAttribute("y", y + (index % 2 ? 12 : -4));
  text.textContent = point.label;
  return group;
}

/** The range of values with a little room on both sides. */
function paddedRange(values) {
  const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  const padding = (high - low) * 0.12 || 0.1;
  return [low - padding, high + padding];
}

const unite = (a, b) => [Math.min(a[0], b[0]), Math.max(a[1], b[1])];

const FOREST = { left: 100, right: 310, row: 22 };

/**
 * Draw rows `{label, value, interval}` below each other, with a line at `mark` (none where it is undefined).
 */
export function forest(part, name, rows, mark) {
  const ends = rows.flatMap((row) => [row.value, ...(row.interval ?? [])]).filter(Number.isFinite);
  const [low, high] = paddedRange(mark === undefined ? ends : [...ends, mark]);
  const place = (value) => FOREST.left + ((value - low) / (high - low)) * (FOREST.right - FOREST.left);
  const bottom = rows.length * FOREST.row + 8;
  part.part(name).setAttribute("viewBox", `0 0 320 ${bottom + 34}`);
  const line = part.part(`${name}-mark`);
  line.toggleAttribute("hidden", mark === undefined);
  for (const [attribute, value] of [["x1", place(mark ?? low)], ["x2", place(mark ?? low)], ["y2", bottom]]) line.setAttribute(attribute, value);
  part.setText(`${name}-low`, low.toFixed(2));
  part.setText(`${name}-high`, high.toFixed(2));
  for (const text of ["low", "high"]) part.part(`${name}-${text}`).setAttribute("y", bottom + 14);
  part.part(`${name}-axis`).setAttribute("y", bottom + 30);
  part.part(`${name}-rows`).replaceChildren(...rows.map((row, index) => createWhisker(part, row, index, place)));
}

function createWhisker(part, row, index, place) {
  const group = part.querySelector('template[data-part="whisker"]').content.querySelector("g").cloneNode(true);
  const [line, dot, text] = group.children;
  const y = index * FOREST.row + 16;
  const [from, to] = row.interval ?? [row.value, row.value];
  for (const [attribute, value] of [["x1", place(from)], ["x2", place(to)], ["y1", y], ["y2", y]]) line.setAttribute(attribute, value);
  dot.setAttribute("cx", place(row.value));
  dot.setAttribute("cy", y);
  text.setAttribute("y", y + 4);
  const names = row.label.split(" − ");
  text.textContent = row.label.length > 18 ? names.map((one) => cutMiddle(one, names.length > 1 ? 7 : 17)).join(" − ") : row.label;
  group.append(createSvg("title", {}, row.label));
  return group;
}

/** Names that begin alike differ at their ends. */
const cutMiddle = (text, room) => (text.length > room ? `${text.slice(0, Math.ceil(room / 2) - 1)}…${text.slice(-Math.floor(room / 2))}` : text);

const COLUMNS = { width: 640, height: 120, most: 48 };

/** Draw columns `{label, value}` into a figure, each with its value in words; `format` writes a value. */
export function drawColumns(figure, columns, format) {
  const most = Math.max(...columns.map(({ value }) => value), 0) || 1;
  const width = Math.min(figure.clientWidth || COLUMNS.width, COLUMNS.width); // texts keep their size on a phone
  const wide = Math.min(width / Math.max(columns.length, 1), COLUMNS.most);
  const bars = columns.map(({ label, value }, at) => {
    const high = (value / most) * COLUMNS.height;
    const bar = createSvg("rect", { x: at * wide + 1, y: COLUMNS.height - high + 14, width: Math.max(wide - 2, 1), height: Math.max(high, 1), rx: 2 });
    bar.append(createSvg("title", {}, `${label}: ${format(value)}`));
    return bar;
  });
  const texts = columns.length
    ? [createSvg("text", { x: 0, y: 9 }, `most ${format(most)}`), createSvg("text", { x: 0, y: COLUMNS.height + 30 }, columns[0].label), createSvg("text", { x: columns.length * wide, y: COLUMNS.height + 30, "text-anchor": "end" }, columns.length > 3 ? columns.at(-1).label : "")]
    : [];
  const svg = createSvg("svg", { viewBox: `0 0 ${width} ${COLUMNS.height + 36}`, role: "img", "aria-label": `${columns.length} columns, at most ${format(most)}` });
  svg.append(...bars, ...texts);
  figure.replaceChildren(svg);
}

/** An SVG element with attributes and a text. */
export function createSvg(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}
