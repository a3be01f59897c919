// Light or dark as it was chosen on this site, where it was: as the admin of Django and others keep it.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch { /* this browser keeps nothing */ }
  if (chosen !== "light" && chosen !== "dark") return; // as the system has it
  document.documentElement.style.colorScheme = chosen;
  for (const rule of document.styleSheets[0].cssRules) {
    if (rule.media?.mediaText === "(prefers-color-scheme: dark)") rule.media.mediaText = chosen === "dark" ? "all" : "not all";
  }
})();
