// Everything works without this file: it only saves marking text before copying it.
"use strict";

for (const button of document.querySelectorAll("button[data-copy]")) {
  const field = document.getElementById(button.dataset.copy);
  const said = button.firstChild;
  const usual = said.data;
  button.hidden = false;
  button.addEventListener("click", async () => {
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      said.data = "Copied";
    } catch {
      said.data = "Press Ctrl+C";
    }
    setTimeout(() => { said.data = usual; }, 2000);
  });
}
