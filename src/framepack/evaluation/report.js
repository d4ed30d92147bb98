"use strict";
// Headings sort their table; without this script it stays in the order of the suite.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...head.childNodes);
    head.append(button);
    const key = (row) => {
      const cell = row.cells[column];
      if (cell.dataset.n !== undefined) return Number(cell.dataset.n);
      return head.classList.contains("words") ? cell.textContent.trim().toLowerCase() : null;
    };
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort");
      for (const other of heads) other.removeAttribute("aria-sort");
      if (order === "descending") {
        body.append(...rows);
        return;
      }
      const side = order === "ascending" ? -1 : 1;
      head.setAttribute("aria-sort", side > 0 ? "ascending" : "descending");
      const sorted = rows.slice().sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a === null || b === null) return (a === null) - (b === null);
        return a < b ? -side : a > b ? side : 0;
      });
      body.append(...sorted);
    });
  });
}
