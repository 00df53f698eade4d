"use strict";
// Numbers as people read them; what is not known is a dash.
const Show = (() => {
  const known = (value) => typeof value === "number" && Number.isFinite(value);
  const score = (value) => (known(value) ? value.toFixed(3) : "–");
  const whole = (value) => (known(value) ? Math.round(value).toLocaleString("en") : "–");

  // Decimal units, as everywhere in the product.
  function bytes(count) {
    if (!known(count)) return "–";
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (count < 1000 || unit === "GB") return `${unit === "B" ? count.toFixed(0) : count.toFixed(1)} ${unit}`;
      count /= 1000;
    }
    return "–";
  }

  const milliseconds = (seconds) => (known(seconds) ? `${(1000 * seconds).toFixed(0)} ms` : "–");

  function duration(seconds) {
    if (!known(seconds)) return "–";
    const all = Math.round(seconds);
    const [hours, minutes] = [Math.floor(all / 3600), Math.floor(all / 60) % 60];
    const two = (value) => String(value).padStart(2, "0");
    return hours ? `${hours}:${two(minutes)}:${two(all % 60)}` : `${minutes}:${two(all % 60)}`;
  }

  const clock = (time) => (known(time) ? new Date(1000 * time).toLocaleTimeString("en-GB") : "–");

  function element(name, properties, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties || {})) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  // A list of names and values; values that stay the same are left alone.
  function facts(list, pairs) {
    if (list.children.length !== pairs.length) {
      list.replaceChildren(...pairs.map(([name]) => element("div", {}, element("dt", { textContent: name }), element("dd", {}))));
    }
    pairs.forEach(([name, value], place) => {
      const [term, detail] = list.children[place].children;
      if (term.textContent !== name) term.textContent = name;
      if (detail.textContent !== value) detail.textContent = value;
    });
  }

  return { known, score, whole, bytes, milliseconds, duration, clock, element, facts };
})();
