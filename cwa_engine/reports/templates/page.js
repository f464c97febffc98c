"use strict";
// Tables sort and filter, figures are drawn, and the look is light or dark. All of it is in this file; nothing is asked for.
(() => {
  const root = document.documentElement;
  const FILTERED_FROM = 8; // rows from which a table can be filtered

  // The number of a cell: what it shows may be shorter. NaN where there is none.
  const numberOf = (cell) => {
    const text = cell.dataset.v ?? cell.textContent.replaceAll(",", "").trim();
    return text === "" ? NaN : Number(text);
  };

  // Rows in the order of a column; those without a value are last either way.
  const sorted = (rows, column, isNumber, descending) => {
    const keyed = rows.map((row) => {
      const cell = row.cells[column];
      const key = isNumber ? numberOf(cell) : cell.textContent;
      return { row, key, missing: isNumber ? Number.isNaN(key) : key === "–" || key === "" };
    });
    const sign = descending ? -1 : 1;
    keyed.sort((a, b) => {
      if (a.missing || b.missing) return a.missing - b.missing;
      const order = isNumber ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
      return sign * order;
    });
    return keyed.map(({ row }) => row);
  };

  const addSorting = (table) => {
    const body = table.tBodies[0];
    const asItWas = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];
    const sort = (heading, column) => {
      const isNumber = heading.classList.contains("n");
      const first = isNumber ? "descending" : "ascending"; // of numbers the largest are looked for
      const other = isNumber ? "ascending" : "descending";
      const now = heading.getAttribute("aria-sort");
      const next = now === first ? other : now === other ? "none" : first;
      headings.forEach((each) => each.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", next);
      const rows = next === "none" ? asItWas : sorted(asItWas, column, isNumber, next === "descending");
      body.append(...rows);
    };
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      button.addEventListener("click", () => sort(heading, column));
      heading.setAttribute("aria-sort", "none");
      heading.replaceChildren(button);
    });
  };

  const addFilter = (table) => {
    const rows = [...table.tBodies[0].rows];
    const bar = document.createElement("p");
    const input = document.createElement("input");
    const count = document.createElement("span");
    bar.className = "filter";
    input.type = "search";
    input.placeholder = "Filter rows";
    input.setAttribute("aria-label", `Filter rows of: ${table.parentElement.getAttribute("aria-label")}`);
    count.setAttribute("role", "status");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = rows.filter((row) => {
        const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        return !row.hidden;
      });
      count.textContent = words.length ? `${shown.length} of ${rows.length}` : "";
    });
    bar.append(input, count);
    table.parentElement.before(bar);
  };

  // The exact value of a cell is told where the mouse rests.
  const showExact = (event) => {
    const cell = event.target.closest?.("td[data-v]");
    if (cell && !cell.title) cell.title = cell.dataset.v;
  };

  document.querySelectorAll("table").forEach((table) => {
    addSorting(table);
    if (table.tBodies[0].rows.length >= FILTERED_FROM) addFilter(table);
  });
  document.addEventListener("pointerover", showExact);

  // Figures. Paper always has the light look, so that one is drawn in any case; the dark one when it is first looked at.
  const OPTIONS = {
    renderer: "svg",
    ast: true, // expressions are interpreted: the page allows no code made of text
    actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
  };

  const changed = (spec, changes) => {
    const found = structuredClone(spec);
    for (const [path, value] of changes) {
      const last = path.at(-1);
      path.slice(0, -1).reduce((part, name) => part[name], found)[last] = value;
    }
    return found;
  };

  // Rows come as lists below the names of their columns.
  const withValues = (spec) => {
    for (const { data } of spec.layer) {
      if (!data.columns) continue;
      data.values = data.rows.map((row) => Object.fromEntries(data.columns.map((name, place) => [name, row[place]])));
      delete data.columns;
      delete data.rows;
    }
    return spec;
  };

  const figures = [...document.querySelectorAll(".chart")].map((chart) => ({
    chart,
    specs: JSON.parse(chart.nextElementSibling.textContent),
    drawn: {},
  }));

  const draw = ({ chart, specs, drawn }, look) => {
    if (drawn[look] || !window.vegaEmbed) return;
    const place = chart.querySelector(`.${look}`);
    const spec = withValues(changed(specs.light, look === "dark" ? specs.dark : []));
    if (spec.width === "container") spec.width = chart.clientWidth; // what is not shown has no width of its own
    drawn[look] = window.vegaEmbed(place, spec, OPTIONS).catch((error) => {
      place.textContent = "The figure could not be drawn; its data is below.";
      console.error(error);
    });
  };

  const button = document.getElementById("look");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = "";
  const show = () => {
    const look = chosen || (system.matches ? "dark" : "light");
    root.dataset.look = look;
    button.textContent = look === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show the page ${look === "dark" ? "light" : "dark"}`);
    figures.forEach((figure) => draw(figure, look));
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = root.dataset.look === "dark" ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  show();
  figures.forEach((figure) => draw(figure, "light"));
  // For programs that wait until all is drawn.
  Promise.all(figures.flatMap(({ drawn }) => Object.values(drawn))).then(() => (root.dataset.ready = "yes"));
})();
