(() => {
  "use strict";
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const stored = { get: () => { try { return localStorage.getItem("steepest-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("steepest-theme", value); } catch { /* storage may be closed */ } } };
  if (["dark", "light"].includes(stored.get())) root.dataset.theme = stored.get();

  function themes() {
    const button = document.getElementById("theme");
    const label = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      stored.set(root.dataset.theme);
      label();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  }

  function sorting(table) {
    const headings = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const original = [...body.rows];
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      const next = now === "none" ? heading.dataset.first : now === "ascending" ? "descending" : "ascending";
      const sign = next === "ascending" ? 1 : -1;
      const numeric = heading.dataset.order === "number";
      const value = (row) => row.cells[column]?.dataset.value ?? "";
      const sorted = [...original].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true }));
      });
      headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? next : "none"));
      body.append(...sorted);
    }));
  }

  function copying(block) {
    const button = block.querySelector("button");
    const code = block.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
  addEventListener("DOMContentLoaded", () => {
    themes();
    document.querySelectorAll("table.sortable").forEach(sorting);
    document.querySelectorAll(".code").forEach(copying);
  });
})();
