// The style sheet filters by verdict without this script, which adds the search and the count.
"use strict";
{
  const ledger = document.querySelector(".ledger");
  const search = ledger.querySelector("#search");
  const output = ledger.querySelector("output");
  const rows = [...ledger.querySelectorAll("tr.row")];

  const update = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => row.getClientRects().length > 0).length;
    for (const body of ledger.querySelectorAll("tbody")) {
      const left = [...body.querySelectorAll("tr.row")].some((row) => !row.hidden);
      body.hidden = !left;
    }
    output.textContent = `${shown} of ${rows.length} rows`;
  };

  ledger.querySelector(".search").hidden = false;
  ledger.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  ledger.querySelector("form").addEventListener("input", update);
  update();
}
