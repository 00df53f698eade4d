"use strict";
// One vehicle in detail, and all of them as a table.
const Vehicle = (() => {
  const panel = document.getElementById("vehicle");
  const [title, list, buttons, pictures] = [
    Show.element("h3"), Show.element("dl", { className: "facts" }), Show.element("div", { className: "bar" }),
    Show.element("div", { className: "pictures" }),
  ];
  panel.append(title, list, buttons, pictures);
  const NAMED = { frame: "what it sees", truth: "ground truth", prediction: "prediction", errors: "where it is wrong" };
  let pictured = "";

  const FIELDS = [
    ["state", (state, at) => Fold.STATES[state.state[at]]],
    ["mIoU", (state, at) => Show.score(Fold.miou(state, at))],
    ["loss", (state, at) => Show.score(Fold.loss(state, at))],
    ["queries", (state, at) => Show.whole(state.columns.queries[at])],
    ["up", (state, at) => Show.bytes(state.columns.up[at])],
    ["down", (state, at) => Show.bytes(state.columns.down[at])],
    ["stale rounds", (state, at) => Show.whole(Fold.staleness(state, at))],
    ["came back", (state, at) => Show.whole(state.columns.returns[at])],
    ["rejects", (state, at) => Show.whole(state.columns.rejects[at])],
  ];
  const MORE = [
    ["stage", (state, at) => Show.whole(state.columns.stage[at])],
    ["round", (state, at) => Show.whole(Math.min(state.columns.round[at], state.rounds))],
    ["start", (state, at) => Show.score(state.columns.start[at])],
    ["validation", (state, at) => Show.score(state.columns.val[at])],
    ["local", (state, at) => Show.score(state.columns.local[at])],
    ["OOD", (state, at) => Show.score(state.columns.ood[at])],
    ["last heard of", (state, at) => Show.clock(state.columns.seen[at])],
  ];

  const summary = (state, at) =>
    `${state.ids[at]}: ${FIELDS.slice(0, 3).map(([name, read]) => `${name} ${read(state, at)}`).join(", ")}`;

  function draw(state, at, settings) {
    panel.hidden = at < 0;
    if (at < 0) {
      pictured = "";
      return;
    }
    title.textContent = state.ids[at];
    Show.facts(list, [...FIELDS, ...MORE].map(([name, read]) => [name, read(state, at)]));
    // Predictions are written as the run ends.
    const wanted = `${state.ids[at]} ${state.ended}`;
    if (wanted !== pictured) {
      pictured = wanted;
      show(state.ids[at], settings, () => pictured === wanted);
    }
  }

  // By test frame: its key, and (address, words) of each picture; then (class, colour) of what is painted.
  async function found(vehicle, settings) {
    if (!settings.live) {
      const words = "what it sees, ground truth and prediction";
      return [(settings.pictures[vehicle] || []).map(([source, key]) => [key, [[source, words]]]), []];
    }
    const at = `vehicles/${encodeURIComponent(vehicle)}`;
    const answer = await fetch(`${at}/frames`).catch(() => null);
    if (answer === null || !answer.ok) return [[], []];
    const { frames, classes } = await answer.json();
    const address = (key, kind) => `${at}/${encodeURIComponent(key)}/${kind}`;
    return [frames.map(({ key, kinds }) => [key, kinds.map((kind) => [address(key, kind), NAMED[kind]])]), classes];
  }

  async function show(vehicle, settings, isWanted) {
    const [frames, classes] = await found(vehicle, settings);
    if (!isWanted()) return;
    const legend = Show.element("ul", { className: "legend", "aria-label": "Colours of the classes" });
    for (const [name, colour] of classes) {
      const swatch = Show.element("i");
      swatch.style.background = colour;
      legend.append(Show.element("li", {}, swatch, name));
    }
    pictures.replaceChildren(...frames.map(([key, shown]) =>
      Show.element("div", { className: "shot", role: "group", "aria-label": `test frame ${key}` }, ...shown.map(([src, words]) =>
        Show.element("figure", {}, Show.element("img", { src, alt: `${vehicle}, test frame ${key}: ${words}`, loading: "lazy" }),
          Show.element("figcaption", { textContent: words }))))), legend);
  }

  return { FIELDS, buttons, panel, summary, draw };
})();

const Listing = (() => {
  const PAGE = 50;
  const [holder, table, find, order, where] = ["listing", "table", "find", "order", "page"].map((id) => document.getElementById(id));
  const BY = {
    name: null, mIoU: Fold.miou, loss: Fold.loss, "bytes up": (state, at) => state.columns.up[at],
    staleness: Fold.staleness, state: (state, at) => state.state[at],
  };
  let page = 0;
  order.append(...Object.keys(BY).map((name) => new Option(name)));
  table.tHead.append(Show.element("tr", {}, ...["vehicle", ...Vehicle.FIELDS.map(([name]) => name)].map((text) => Show.element("th", { scope: "col", textContent: text }))));

  // Calls `choose` with the row whose name is pressed, `changed` when something else is to be seen.
  function listen(choose, changed) {
    const turn = (by) => () => { page = Math.max(0, page + by); changed(); };
    document.getElementById("previous").addEventListener("click", turn(-1));
    document.getElementById("next").addEventListener("click", turn(1));
    for (const input of [find, order]) input.addEventListener("input", () => { page = 0; changed(); });
    holder.addEventListener("toggle", changed);
    table.tBodies[0].addEventListener("click", (event) => {
      const pressed = event.target.closest("button");
      if (pressed) choose(pressed.textContent);
    });
  }

  function draw(state) {
    if (!holder.open) return;
    const wanted = find.value.trim().toLowerCase();
    let rows = Grid.places(state).filter((at) => !wanted || state.ids[at].toLowerCase().includes(wanted));
    const by = BY[order.value];
    // The greatest first; what is not known comes last.
    if (by) rows = rows.map((at) => [at, by(state, at)]).sort(([, a], [, b]) => (Number.isNaN(b) ? -1 : Number.isNaN(a) ? 1 : b - a)).map(([at]) => at);
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    page = Math.min(page, pages - 1);
    where.textContent = `${rows.length} vehicles, page ${page + 1} of ${pages}`;
    // The focus stays on its row while the numbers change.
    const focused = table.contains(document.activeElement) ? document.activeElement.textContent : null;
    table.tBodies[0].replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map((at) =>
      Show.element("tr", {}, Show.element("th", { scope: "row" }, Show.element("button", { type: "button", textContent: state.ids[at] })),
        ...Vehicle.FIELDS.map(([, read]) => Show.element("td", { textContent: read(state, at) })))));
    if (focused !== null) [...table.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
  }

  return { listen, draw };
})();
