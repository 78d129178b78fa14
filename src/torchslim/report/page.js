// Click a column's head to sort by it. Without scripts the tables stand in the order of the network.
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    const body = head.closest("table").tBodies[0];
    const key = (row) => row.cells[head.cellIndex].textContent;
    const size = (text) => Number(text.replace(/[,%]/g, ""));
    const order = (a, b) => (isNaN(size(a) - size(b)) ? a.localeCompare(b) : size(a) - size(b));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b))));
  });
}
