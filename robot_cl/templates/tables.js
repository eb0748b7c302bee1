// Tables with data-sortable sort by a click on a heading, by numbers where there are numbers; again turns it round.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.className = "sort";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
      const value = row => {
        const found = row.cells[column], text = found.dataset.value ?? found.textContent.trim();
        const number = parseFloat(text.replaceAll(",", "").replace("−", "-"));
        return Number.isNaN(number) ? text.toLowerCase() : number;
      };
      // A row marked minor explains the one above it and stays with it.
      const groups = [];
      for (const row of body.rows) row.classList.contains("minor") && groups.length ? groups.at(-1).push(row) : groups.push([row]);
      const mixed = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1;
      groups.sort((a, b) => down * mixed(value(a[0]), value(b[0])));
      body.append(...groups.flat());
    });
  });
}
