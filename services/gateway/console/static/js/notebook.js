/** Notebooks: an experiment as cells that run it against this Fovea with its Python package, and plot the answer. */

import { toPython } from "./api_code.js";
import { save } from "./save.js";

const PLOT = `import matplotlib.pyplot as plt

def ticks(axis):
    every = max(-(-len(axis["ticks"]) // 40), 1)
    return range(len(axis["ticks"]))[::every], axis["ticks"][::every]

for grid in report["grids"][:12]:
    values = [[float("nan") if value is None else value for value in row] for row in grid["values"]]
    most = max((abs(value) for row in values for value in row if value == value), default=1.0)
    # As in the console: blue above zero, red below.
    colours = {"cmap": "RdBu", "vmin": -most, "vmax": most} if grid["scale"] == "diverging" else {"cmap": "viridis"}
    plt.figure()
    plt.imshow(values, aspect="auto", **colours)
    plt.xticks(*ticks(grid["columns"]), rotation=90)
    plt.yticks(*ticks(grid["rows"]))
    plt.title(grid["name"])
    plt.xlabel(grid["columns"]["label"])
    plt.ylabel(grid["rows"]["label"])
    plt.colorbar(label=grid["unit"])
for bars in report["bars"]:
    plt.figure()
    plt.bar([bar["label"] for bar in bars["bars"]], [bar["value"] or 0 for bar in bars["bars"]])
    plt.title(bars["name"])
plt.show()`;

/** Save the notebook of an experiment, which its permalink opens in the console. */
export function saveNotebook(title, request, permalink) {
  const code = (source) => ({ cell_type: "code", execution_count: null, metadata: {}, outputs: [], source: toLines(source) });
  const text = (source) => ({ cell_type: "markdown", metadata: {}, source: toLines(source) });
  const cells = [
    text(`# ${title}\n\nInstall the package with \`pip install fovea-serve matplotlib\`. Set \`FOVEA_API_KEY\` if the server asks for a key.\n\nPermalink: ${permalink}`),
    code(`import os\n\nfrom fovea import Client\n\nclient = Client("${location.origin}", key=os.environ.get("FOVEA_API_KEY"))`),
    code(`report = client.run("probe", ${toPython(request)})\n{name: scalar["value"] for name, scalar in report["scalars"].items()}`),
    code(PLOT),
  ].map((cell, at) => ({ id: `cell-${at}`, ...cell }));
  const metadata = { kernelspec: { display_name: "Python 3", language: "python", name: "python3" }, language_info: { name: "python" } };
  const notebook = { cells, metadata, nbformat: 4, nbformat_minor: 5 };
  save(new Blob([JSON.stringify(notebook, null, 1)], { type: "application/x-ipynb+json" }), `${request.model}.ipynb`);
}

const toLines = (source) => source.split("\n").map((line, at, all) => (at + 1 < all.length ? `${line}\n` : line));
