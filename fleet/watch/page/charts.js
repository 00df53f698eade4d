"use strict";
// Curves as they grow, as SVG in the page's own colours.
const Charts = (() => {
  const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [320, 190, 44, 14, 12, 26];
  const MOST_POINTS = 400;
  const SPACE = "http://www.w3.org/2000/svg";
  const CHARTS = [
    { y: "val", x: "round", title: "mIoU against rounds", yText: Show.score, xText: Show.whole },
    { y: "val", x: "bytes", title: "mIoU against bytes, up and down", yText: Show.score, xText: Show.bytes },
    { y: "val", x: "wall", title: "mIoU against time", yText: Show.score, xText: Show.duration },
    { y: "loss", x: "round", title: "loss against rounds", yText: Show.score, xText: Show.whole },
  ];

  const node = (name, attributes) => {
    const made = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // Points with both values; of a round the last one; of very many every few and the last.
  function points(curve, { x, y }) {
    const last = new Map();
    curve.forEach((point, place) => {
      if (Show.known(point[x]) && Show.known(point[y])) last.set(x === "round" ? point.round : place, [point[x], point[y]]);
    });
    const all = [...last.values()];
    const step = Math.ceil(all.length / MOST_POINTS);
    return step < 2 ? all : all.filter((_, place) => place % step === 0 || place === all.length - 1);
  }

  let drawn = "";

  // Curves grow with the stages: most paints have nothing new for them.
  function draw(holder, curve) {
    const now = `${curve.length} ${curve.at(-1)?.stage} ${curve.at(-1)?.wall}`;
    if (now === drawn) return;
    drawn = now;
    if (holder.children.length === 0) {
      for (const chart of CHARTS) {
        holder.append(Show.element("figure", {}, Show.element("figcaption", { textContent: chart.title })));
      }
    }
    CHARTS.forEach((chart, place) => {
      const figure = holder.children[place];
      const made = one(points(curve, chart), chart);
      if (figure.children.length > 1) figure.lastChild.replaceWith(made);
      else figure.append(made);
    });
  }

  function one(shown, chart) {
    const latest = shown.length ? `: ${chart.yText(shown.at(-1)[1])} at ${chart.xText(shown.at(-1)[0])}` : ": nothing yet";
    const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.title + latest });
    const text = (x, y, words, anchor) => {
      const made = node("text", { x, y, "text-anchor": anchor });
      made.textContent = words;
      svg.append(made);
    };
    svg.append(node("path", { class: "axis", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }));
    if (shown.length === 0) {
      text((LEFT + WIDTH) / 2, HEIGHT / 2, "nothing yet", "middle");
      return svg;
    }
    const [xs, ys] = [shown.map(([x]) => x), shown.map(([, y]) => y)];
    const [low, high] = [Math.min(...ys), Math.max(...ys)];
    const pad = high > low ? 0.08 * (high - low) : Math.max(1e-3, 0.1 * Math.abs(high));
    const bottom = Math.max(0, low - pad);
    const top = high + pad;
    const first = chart.x === "round" ? Math.min(1, xs[0]) : 0;
    const last = Math.max(xs.at(-1), first + 1e-9);
    const right = (x) => LEFT + ((x - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
    const up = (y) => HEIGHT - BOTTOM - ((y - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
    const path = shown.map(([x, y], place) => `${place ? "L" : "M"}${right(x).toFixed(1)} ${up(y).toFixed(1)}`).join("");
    svg.append(node("path", { class: "line", d: path }));
    svg.append(node("circle", { class: "dot", cx: right(xs.at(-1)), cy: up(ys.at(-1)), r: 3.5 }));
    text(LEFT - 5, HEIGHT - BOTTOM, chart.yText(bottom), "end");
    text(LEFT - 5, TOP + 8, chart.yText(top), "end");
    text(LEFT, HEIGHT - 8, chart.xText(first), "start");
    text(WIDTH - RIGHT, HEIGHT - 8, chart.xText(xs.at(-1)), "end");
    text(Math.min(right(xs.at(-1)), WIDTH - RIGHT - 2), Math.max(up(ys.at(-1)) - 8, TOP + 2), chart.yText(ys.at(-1)), "end");
    return svg;
  }

  return { draw, points };
})();
