/** Scatter plots: puts labelled dots into an SVG of `judge.html`. */

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
