"use strict";
// What has happened: joins, losses, rejects, kills, resumes; the latest first.
const News = (() => {
  const KINDS = { join: "joins", loss: "losses", reject: "rejects", kill: "kills", resume: "resumes", end: "ends" };
  const MOST_SHOWN = 200;
  const [list, choices] = ["news", "kinds"].map((id) => document.getElementById(id));
  const chosen = new Set(Object.keys(KINDS));
  let drawn = "";

  function listen(changed) {
    for (const [kind, name] of Object.entries(KINDS)) {
      const box = Show.element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        if (box.checked) chosen.add(kind);
        else chosen.delete(kind);
        drawn = "";
        changed();
      });
      choices.append(Show.element("label", {}, box, ` ${name}`));
    }
  }

  function draw(state) {
    const now = `${state.newsCount} ${state.events}`;
    if (drawn.split(" ")[0] === String(state.newsCount) && drawn !== "") return;
    drawn = now;
    const shown = state.news.filter((item) => chosen.has(item.kind)).slice(-MOST_SHOWN).reverse();
    list.replaceChildren(...shown.map((item) =>
      Show.element("li", { className: item.kind }, Show.element("time", { textContent: Show.clock(item.time) }),
        Show.element("span", { className: item.kind, textContent: item.kind }), Show.element("b", { textContent: item.vehicle }),
        Show.element("span", { textContent: item.text }))));
  }

  return { listen, draw };
})();
