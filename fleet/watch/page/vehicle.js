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
  const SPLITS = { test: "test frame", val: "validation frame", train: "train frame" };
  const UNCHANGING = ["frame", "truth"];
  const REFRESH_MS = 5000;
  let [pictured, asked, later] = ["", -Infinity, null];

  const FIELDS = [
    ["state", (state, at) => Fold.STATES[state.state[at]]],
    ["mIoU", (state, at) => Show.score(Fold.miou(state, at))],
    ["loss", (state, at) => Show.score(Fold.loss(state, at))],
    ["queries", (state, at) => Show.whole(state.columns.queries[at])],
    ["up", (state, at) => Show.bytes(state.columns.up[at])],
    ["down", (state, at) => Show.bytes(state.columns.down[at])],
    ["stale rounds", (state, at) => Show.whole(Fold.staleness(state, at))],
    ["came back", (state, at) => Show.whole(state.columns.returns[at])],
    ["left out", (state, at) => Show.whole(state.columns.leftOut[at])],
    ["rejects", (state, at) => Show.whole(state.columns.rejects[at])],
  ];
  const MORE = [
    ["stage", (state, at) => Show.whole(state.columns.stage[at])],
    ["round", (state, at) => Show.whole(Math.min(state.columns.round[at], state.rounds))],
    ["start", (state, at) => Show.score(state.columns.start[at])],
    ["validation", (state, at) => Show.score(state.columns.val[at])],
    ["local", (state, at) => Show.score(state.columns.local[at])],
    ["OOD", (state, at) => Show.score(state.columns.ood[at])],
    ["round trip", (state, at) => Show.milliseconds(state.columns.roundTrip[at])],
    ["a second", (state, at) => Show.bytes(Fold.rate(state, at))],
    ["reconnects", (state, at) => Show.whole(state.columns.reconnects[at])],
    ["link lost", (state, at) => Show.whole(state.columns.losses[at])],
    ["its process", Load.ofVehicle],
    ["last heard of", (state, at) => Show.clock(state.columns.seen[at])],
  ];

  const summary = (state, at) =>
    `${state.ids[at]}: ${FIELDS.slice(0, 3).map(([name, read]) => `${name} ${read(state, at)}`).join(", ")}`;

  function draw(state, at, settings) {
    panel.hidden = at < 0;
    clearTimeout(later);
    if (at < 0) {
      pictured = "";
      return;
    }
    title.textContent = state.ids[at];
    Show.facts(list, [...FIELDS, ...MORE].map(([name, read]) => [name, read(state, at)]));
    refresh(state.ids[at], state.ended ? "all" : state.columns.pictures[at], settings);
  }

  // Pictures of another vehicle at once, new ones of the same one at intervals, but the last ones at once:
  // who serves them may be about to go.
  function refresh(vehicle, what, settings) {
    const wanted = `${vehicle} ${what}`;
    if (wanted === pictured) return;
    const isSame = pictured.startsWith(`${vehicle} `);
    const wait = asked + REFRESH_MS - performance.now();
    if (isSame && what !== "all" && wait > 0) {
      later = setTimeout(() => refresh(vehicle, what, settings), wait);
      return;
    }
    if (!isSame) pictures.replaceChildren();
    [pictured, asked] = [wanted, performance.now()];
    show(vehicle, settings, () => pictured === wanted);
  }

  // By frame: what it is called, and (address, words) of each picture; then (class, colour) of what is painted.
  async function found(vehicle, settings) {
    if (!settings.live) {
      const words = "what it sees, ground truth and prediction";
      return [(settings.pictures[vehicle] || []).map(([source, key]) => [`test frame ${key}`, [[source, words]]]), []];
    }
    if (!settings.frames) return [[], []];
    const at = `vehicles/${encodeURIComponent(vehicle)}`;
    const answer = await fetch(`${at}/frames`).catch(() => null);
    if (answer === null) return null;
    if (!answer.ok) return [[], []];
    const { frames, classes } = await answer.json();
    const address = ({ key, stage }, kind) =>
      `${at}/${encodeURIComponent(key)}/${kind}${UNCHANGING.includes(kind) || stage === null ? "" : `?stage=${stage}`}`;
    const words = (frame, kind) => NAMED[kind] || `the cloud's loss, 0 to ${Show.score(frame.most_loss)}`;
    const called = ({ split, key, stage }) => `${SPLITS[split]} ${key}${stage === null ? "" : `, in stage ${stage}`}`;
    return [frames.map((frame) => [called(frame), frame.kinds.map((kind) => [address(frame, kind), words(frame, kind)])]), classes];
  }

  async function show(vehicle, settings, isWanted) {
    const answer = await found(vehicle, settings);
    if (answer === null) return;
    const [frames, classes] = answer;
    // What is shown already stays as it is; what is new is shown when it is there.
    const drawn = new Map([...pictures.querySelectorAll("img")].map((img) => [img.getAttribute("src"), img]));
    const shots = frames.map(([called, shown]) => [called, shown.map(([src, words]) => {
      const img = drawn.get(src) || Show.element("img", { src });
      img.alt = `${vehicle}, ${called}: ${words}`;
      return [img, words];
    })]);
    await Promise.all(shots.flatMap(([, shown]) => shown.map(([img]) => img.decode().catch(() => null))));
    if (!isWanted()) return;
    const legend = Show.element("ul", { className: "legend", "aria-label": "Colours of the classes" });
    for (const [name, colour] of classes) {
      const swatch = Show.element("i");
      swatch.style.background = colour;
      legend.append(Show.element("li", {}, swatch, name));
    }
    pictures.replaceChildren(...shots.map(([called, shown]) =>
      Show.element("div", { role: "group", "aria-label": called }, Show.element("p", { className: "muted", textContent: called }),
        Show.element("div", { className: shown.length > 1 ? "shot" : "shot whole" }, ...shown.map(([img, words]) =>
          Show.element("figure", {}, img, Show.element("figcaption", { textContent: words })))))), legend);
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
