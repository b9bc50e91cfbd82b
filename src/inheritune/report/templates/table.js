// Sorts and filters the table of runs. It adds buttons and a box; without it the table is what it was.
"use strict";

const TIMES = { k: 1e3, K: 1e3, M: 1e6, G: 1e9, B: 1e9, T: 1e12, P: 1e15, E: 1e18, Z: 1e21, Y: 1e24 };

for (const table of document.querySelectorAll("table.runs")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  // A row without a name is a seed of the row above that has one, and stays below it.
  const groups = [];
  for (const row of body.rows) {
    if (row.cells[0].textContent || !groups.length) groups.push([]);
    groups.at(-1).push(row);
  }

  // What a cell says: a number as it is printed (-0.033, 86.3K, 1.23 TFLOP, the first of an interval), or a text.
  const value = (row, column) => {
    const text = row.cells[column].textContent.replaceAll("\u2212", "-");
    if (!headings[column].classList.contains("number")) return text || null;
    const found = /^\[?([-+]?[\d,]*\.?\d+) ?([kKMGBTPEZY]?)/.exec(text);
    return found && Number(found[1].replaceAll(",", "")) * (TIMES[found[2]] ?? 1);
  };

  // What has no value is last in either direction.
  const order = (one, other, sign) => {
    if (one === null || other === null) return (one === null) - (other === null);
    return sign * (typeof one === "string" ? one.localeCompare(other) : one - other);
  };

  const sort = (column) => {
    const heading = headings[column];
    const direction = heading.ariaSort === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    for (const each of headings) each.ariaSort = each === heading ? direction : "none";
    const sorted = groups.map(([first, ...seeds]) => {
      seeds.sort((one, other) => order(value(one, column), value(other, column), sign));
      const rows = [first, ...seeds];
      return { rows, key: rows.map((row) => value(row, column)).find((key) => key !== null) ?? null };
    });
    sorted.sort((one, other) => order(one.key, other.key, sign));
    body.append(...sorted.flatMap((group) => group.rows));
  };

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(column));
    heading.append(button);
    heading.ariaSort = "none";
  });

  const box = document.createElement("input");
  const count = document.createElement("output");
  box.type = "search";
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().replaceAll("\u2212", "-").split(/\s+/);
    let shown = 0;
    for (const rows of groups) {
      for (const row of rows) {
        const cells = [rows[0].cells[0], ...row.cells].map((cell) => cell.textContent);
        const text = cells.join(" ").toLowerCase().replaceAll("\u2212", "-");
        row.hidden = !words.every((word) => text.includes(word));
      }
      rows[0].hidden = rows.every((row) => row.hidden);
      shown += rows.filter((row) => !row.hidden).length;
    }
    count.textContent = box.value && `${shown} of ${body.rows.length} rows`;
  });
  const label = document.createElement("label");
  const filter = document.createElement("div");
  filter.className = "filter";
  label.append("Rows with ", box);
  filter.append(label, " ", count);
  table.closest(".scroll").before(filter);
}
