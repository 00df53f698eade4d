"use strict";
// Lines of the log come in, are folded, and the state is painted a few times a second; when no more come, the
// slider goes back to any moment.
(() => {
  const PAINT_MS = 200;
  const NEWS_MS = 1000;
  const ACTIVE_MS = 3000;
  const KEPT_STATES = 40;
  const PLAY_S = 30;
  const KINDS = { initial: "the start is tested", train: "vehicles learn", learn: "vehicles learn", final: "the end is tested" };
  const byId = (id) => document.getElementById(id);
  const settings = JSON.parse(byId("settings").textContent);
  const [status, slider, moment, play, colour] = ["status", "time", "moment", "play", "colour"].map(byId);
  const lines = [];
  let latest = Fold.empty();
  let shown = latest;
  let kept = [];
  let ending = "";
  let chosen = -1;
  let due = Infinity;
  let timer = null;
  let painted = 0;
  let acted = -Infinity;
  let playing = null;

  // Painting is most of what the page costs: news are painted sooner only where somebody does something.
  function changed(gap = PAINT_MS) {
    if (painted + gap >= due) return;
    due = painted + gap;
    clearTimeout(timer);
    timer = setTimeout(() => requestAnimationFrame(paint), Math.max(0, due - performance.now()));
  }

  const redraw = () => changed();
  const news = () => changed(performance.now() - acted < ACTIVE_MS ? PAINT_MS : NEWS_MS);
  for (const kind of ["click", "keydown"]) addEventListener(kind, () => { acted = performance.now(); }, true);

  function paint() {
    due = Infinity;
    painted = performance.now();
    const state = shown;
    if (chosen >= state.ids.length) chosen = -1;
    heading(state);
    const range = Grid.paint(state, colour.value, chosen);
    Grid.legend(byId("legend"), state, colour.value, range);
    if (chosen >= 0) {
      const words = Vehicle.summary(state, chosen);
      if (byId("chosen").textContent !== words) byId("chosen").textContent = words;
    }
    Vehicle.draw(state, opened ? chosen : -1, settings);
    Listing.draw(state);
    Charts.draw(byId("curves"), state.curve);
    News.draw(state);
    Load.draw(latest, ending !== "");
    Operator.draw(latest, opened ? chosen : -1, ending !== "");
    // For benchmarks: what was painted last, and what it took.
    performance.clearMarks();
    performance.mark("painted", { detail: { events: state.events, ms: performance.now() - painted } });
  }

  function heading(state) {
    const [words, bad] = condition(state);
    if (status.textContent !== words) status.textContent = words;
    status.classList.toggle("bad", bad);
    const { result } = state;
    const point = state.curve.at(-1);
    const pairs = [
      ["algorithm", state.algorithm || "–"],
      ["vehicles", Show.whole(state.ids.length)],
      ["round", `${Math.min(state.round, state.rounds)} of ${state.rounds}`],
      ["stages", `${state.stage + 1} of ${state.stages}`],
      ["up", Show.bytes(result ? result.uplink_bytes : Fold.sum(state, "up"))],
      ["down", Show.bytes(result ? result.downlink_bytes : Fold.sum(state, "down"))],
      ["validation mIoU", Show.score(point ? point.val : NaN)],
      ["local mIoU", Show.score(result ? result.mean_local_miou : NaN)],
      ["OOD mIoU", Show.score(result ? result.mean_ood_miou : NaN)],
    ];
    if (result && Show.known(result.fleet_miou)) pairs.push(["mIoU on the test split", Show.score(result.fleet_miou)]);
    Show.facts(byId("facts"), pairs);
  }

  function condition(state) {
    if (state.ended) return ["the run is complete", false];
    if (state.stopped) return ["stopped; blackfleet launch --resume goes on", true];
    if (state.paused) return ["paused", false];
    if (ending !== "" && shown === latest) return ["no more news: what shows this run has ended", true];
    if (state.waiting) return [`waiting for ${state.waiting}`, state.runs > 0];
    if (state.events === 0) return ["waiting for the first event", false];
    return [state.cloud || KINDS[state.kind] || state.kind || "gathering the vehicles", false];
  }

  function take(more) {
    for (const line of more) {
      if (line === "") continue;
      lines.push(line);
      Fold.applyLine(latest, line);
    }
    news();
  }

  // Replay ---------------------------------------------------------------------------------------------

  function end(how) {
    ending = how;
    byId("replay").hidden = false;
    slider.max = lines.length;
    slider.value = lines.length;
    if (!settings.live) follow();
    describe();
    changed();
  }

  // The state after so many lines, from the nearest one that was kept.
  function stateAt(count) {
    if (count >= lines.length) return latest;
    const step = Math.max(200, Math.ceil(lines.length / KEPT_STATES));
    const full = Math.floor(count / step);
    if (kept.length === 0) kept = [Fold.empty()];
    while (kept.length <= full) {
      const next = Fold.copy(kept.at(-1));
      const from = (kept.length - 1) * step;
      for (let at = from; at < from + step; at++) Fold.applyLine(next, lines[at]);
      kept.push(next);
    }
    const state = Fold.copy(kept[full]);
    for (let at = full * step; at < count; at++) Fold.applyLine(state, lines[at]);
    return state;
  }

  function describe() {
    const words = `${Show.duration(shown.time - latest.began)} of ${Show.duration(latest.time - latest.began)}`;
    moment.textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }

  function follow() {
    shown = stateAt(Number(slider.value));
    describe();
    changed();
  }

  function halt() {
    clearInterval(playing);
    playing = null;
    play.textContent = "Play";
  }

  slider.addEventListener("input", () => { halt(); follow(); });
  play.addEventListener("click", () => {
    if (playing !== null) return halt();
    if (Number(slider.value) >= lines.length) slider.value = 0;
    play.textContent = "Halt";
    const step = Math.max(1, Math.round((lines.length * PAINT_MS) / (1000 * PLAY_S)));
    playing = setInterval(() => {
      slider.value = Number(slider.value) + step;
      follow();
      if (Number(slider.value) >= lines.length) halt();
    }, PAINT_MS);
  });

  // Choosing a vehicle ---------------------------------------------------------------------------------

  let opened = false;

  function choose(at, open) {
    chosen = at;
    opened = open && at >= 0;
    changed();
  }

  Grid.canvas.addEventListener("click", (event) => {
    const at = Grid.under(shown, event);
    if (at >= 0) choose(at, true);
  });
  Grid.holder.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") choose(chosen, true);
    else if (event.key === "Escape") choose(chosen, false);
    else {
      const at = Grid.moved(shown, chosen, event.key);
      if (at === chosen && !event.key.startsWith("Arrow")) return;
      choose(at, opened);
    }
    event.preventDefault();
  });
  Listing.listen((name) => {
    choose(shown.index.get(name), true);
    Vehicle.panel.scrollIntoView({ block: "nearest" });
  }, redraw);
  News.listen(redraw);
  colour.append(...Object.keys(Grid.MEASURES).map((name) => new Option(name)));
  colour.addEventListener("change", redraw);
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  Operator.start(settings);
  if (settings.live) Source.stream(take, (load) => { Load.take(load); news(); }, end);
  else Source.embedded(byId("log"), take, end);
  changed();
})();
