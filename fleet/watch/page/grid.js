"use strict";
// The fleet as cells on a canvas: cards with words for a few vehicles, coloured squares for thousands.
const Grid = (() => {
  const HEIGHT = 560;
  const NAMES = { "trained on": "trained" };
  const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const canvas = document.getElementById("cells");
  const holder = document.getElementById("grid");
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  let colours = null;
  let order = [];
  let ordered = 0;
  let shape = null;
  scheme.addEventListener("change", () => { colours = null; });

  const MEASURES = {
    state: null,
    mIoU: { value: Fold.miou, text: Show.score },
    loss: { value: Fold.loss, text: Show.score },
    staleness: { value: Fold.staleness, text: (value) => `${Show.whole(value)} rounds` },
    "round trip": { value: (state, at) => state.columns.roundTrip[at], text: Show.milliseconds },
    "bytes a second": { value: Fold.rate, text: Show.bytes },
    "bytes sent": { value: (state, at) => state.columns.up[at] + state.columns.down[at], text: Show.bytes },
  };

  function schemeColours() {
    if (colours === null) {
      const style = getComputedStyle(document.documentElement);
      const read = (name) => style.getPropertyValue(`--${name}`).trim();
      colours = { ink: read("ink"), accent: read("accent"), unknown: read("starting"), on: read("on-cell"), font: read("font") };
      colours.states = Fold.STATES.map((name) => read(NAMES[name] || name));
    }
    return colours;
  }

  const scale = (part) => {
    const place = Math.min(1, Math.max(0, part)) * (VIRIDIS.length - 1);
    const low = Math.min(VIRIDIS.length - 2, Math.floor(place));
    const mix = VIRIDIS[low].map((from, i) => Math.round(from + (VIRIDIS[low + 1][i] - from) * (place - low)));
    return `rgb(${mix.join(",")})`;
  };

  // Vehicles in the order of their names, whatever order they joined in.
  function places(state) {
    if (ordered !== state.ids.length) {
      const collator = new Intl.Collator("en", { numeric: true });
      order = state.ids.map((_, at) => at).sort((a, b) => collator.compare(state.ids[a], state.ids[b]));
      ordered = state.ids.length;
    }
    return order;
  }

  function layout(count, width) {
    if (count <= 48) {
      const columns = Math.max(1, Math.floor(width / 152));
      return { columns, wide: width / columns, high: 62, cards: true };
    }
    let size = Math.max(4, Math.floor(Math.sqrt((width * HEIGHT) / count)));
    while (size > 4 && Math.ceil(count / Math.floor(width / size)) * size > HEIGHT) size -= 1;
    size = Math.min(size, 44);
    return { columns: Math.max(1, Math.floor(width / size)), wide: size, high: size, cards: false };
  }

  function paint(state, measure, chosen) {
    const shown = places(state);
    const width = holder.clientWidth;
    shape = layout(shown.length, width);
    const height = Math.max(shape.high, Math.ceil(shown.length / shape.columns) * shape.high);
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const ink = schemeColours();
    const range = measure === "state" ? null : extent(state, measure);
    const gap = shape.wide > 7 ? 2 : 1;
    for (let place = 0; place < shown.length; place++) {
      const at = shown[place];
      const x = (place % shape.columns) * shape.wide;
      const y = Math.floor(place / shape.columns) * shape.high;
      pen.fillStyle = range === null ? ink.states[state.state[at]] : colour(state, at, measure, range, ink);
      if (shape.cards) card(pen, state, at, x, y, ink);
      else pen.fillRect(x, y, shape.wide - gap, shape.high - gap);
      // Lost and failed differ from the others in shape, too.
      if (!shape.cards && range === null && shape.wide >= 8 && (state.state[at] === Fold.LOST || state.state[at] === Fold.FAILED)) {
        pen.strokeStyle = ink.on;
        pen.lineWidth = 1.5;
        pen.beginPath();
        pen.moveTo(x + 2, y + 2);
        pen.lineTo(x + shape.wide - gap - 2, y + shape.high - gap - 2);
        pen.stroke();
      }
      if (at === chosen) {
        pen.strokeStyle = ink.ink;
        pen.lineWidth = 2;
        const rim = shape.cards ? 8 : gap;
        pen.strokeRect(x + 1, y + 1, shape.wide - rim - 2, shape.high - rim - 2);
      }
    }
    return range;
  }

  function card(pen, state, at, x, y, ink) {
    const words = [state.ids[at], Fold.STATES[state.state[at]], `mIoU ${Show.score(Fold.miou(state, at))}`];
    pen.fillRect(x, y, 7, shape.high - 8);
    pen.globalAlpha = 0.14;
    pen.fillRect(x + 7, y, shape.wide - 15, shape.high - 8);
    pen.globalAlpha = 1;
    pen.fillStyle = ink.ink;
    words.forEach((text, line) => {
      pen.font = `${line === 0 ? "600 " : ""}13px ${ink.font}`;
      pen.fillText(text, x + 15, y + 16 + 16 * line, shape.wide - 28);
    });
  }

  function extent(state, measure) {
    const { value } = MEASURES[measure];
    let low = Infinity;
    let high = -Infinity;
    for (let at = 0; at < state.ids.length; at++) {
      const one = value(state, at);
      if (one < low) low = one;
      if (one > high) high = one;
    }
    return low <= high ? [low, high] : [NaN, NaN];
  }

  function colour(state, at, measure, [low, high], ink) {
    const value = MEASURES[measure].value(state, at);
    if (Number.isNaN(value) || value === undefined) return ink.unknown;
    return scale(high > low ? (value - low) / (high - low) : 0.5);
  }

  function legend(list, state, measure, range) {
    const ink = schemeColours();
    const items = [];
    const item = (background, text, wide) => {
      const swatch = document.createElement("i");
      swatch.style.background = background;
      if (wide) swatch.className = "scale";
      const entry = document.createElement("li");
      entry.append(swatch, text);
      items.push(entry);
    };
    if (range === null) {
      const counts = new Array(Fold.STATES.length).fill(0);
      for (let at = 0; at < state.ids.length; at++) counts[state.state[at]] += 1;
      counts.forEach((count, kind) => { if (count) item(ink.states[kind], `${Fold.STATES[kind]} ${count}`); });
    } else if (!Number.isNaN(range[0])) {
      const [low, high] = range.map(MEASURES[measure].text);
      item(`linear-gradient(90deg, ${VIRIDIS.map((rgb) => `rgb(${rgb})`).join(",")})`, `${low} to ${high}`, true);
      item(ink.unknown, "not known");
    }
    list.replaceChildren(...items);
  }

  // The row of the vehicle under a pointer, or -1.
  function under(state, event) {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / shape.wide);
    const place = Math.floor((event.clientY - box.top) / shape.high) * shape.columns + column;
    return column < shape.columns && place < state.ids.length ? places(state)[place] : -1;
  }

  // The row that an arrow key leads to.
  function moved(state, chosen, key) {
    const shown = places(state);
    if (shown.length === 0) return -1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -shape.columns, ArrowDown: shape.columns, Home: -Infinity, End: Infinity };
    if (!(key in steps)) return chosen;
    const from = chosen < 0 ? (steps[key] > 0 ? -1 : 0) : shown.indexOf(chosen);
    if (chosen < 0 && Number.isFinite(steps[key])) return shown[0];
    return shown[Math.min(shown.length - 1, Math.max(0, from + steps[key]))];
  }

  return { MEASURES, holder, canvas, places, paint, legend, under, moved };
})();
