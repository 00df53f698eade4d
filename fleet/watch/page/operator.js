"use strict";
// The buttons of whoever has launched the fleet; there are none for others.
const Operator = (() => {
  const bar = document.getElementById("operator");
  const said = Show.element("span", { role: "status", className: "muted" });
  let settings = null;
  let drawn = "";
  let drawnOfVehicle = "";

  async function press(action, what) {
    said.textContent = "";
    const answer = await fetch("press", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Blackfleet-Token": settings.token },
      body: JSON.stringify({ action, what }),
    }).catch(() => null);
    if (answer === null) said.textContent = "blackfleet does not answer";
    else if (!answer.ok) said.textContent = (await answer.text()).trim();
  }

  function button(text, action, what, danger) {
    const made = Show.element("button", { type: "button", textContent: text, className: danger ? "danger" : "" });
    made.dataset.action = action;
    made.addEventListener("click", async () => {
      made.disabled = true;
      await press(action, what);
      made.disabled = false;
    });
    return made;
  }

  const killing = (state, process, words) =>
    state.dead[process] ? button(`Revive ${words}`, "revive", process) : button(`Kill ${words}`, "kill", process, true);

  // Buttons are made anew only where they change: a press must not lose its button, nor the keyboard its place.
  function draw(state, at, over) {
    if (settings === null || !settings.buttons) return;
    bar.hidden = over || state.ended;
    Vehicle.buttons.hidden = bar.hidden;
    const names = Object.keys(state.processes);
    const now = JSON.stringify([state.paused, state.dead, names]);
    if (now !== drawn) {
      drawn = now;
      replace(bar, [
        state.paused ? button("Resume", "resume", "") : button("Pause", "pause", ""),
        button("Stop cleanly", "stop", "", true),
        ...names.filter((name) => state.processes[name].length === 0).map((name) => killing(state, name, `the ${name}`)),
        said,
      ]);
    }
    const process = at < 0 ? undefined : names.find((name) => state.processes[name].includes(state.ids[at]));
    const nowOfVehicle = process === undefined ? "" : `${process} ${Boolean(state.dead[process])}`;
    if (nowOfVehicle !== drawnOfVehicle) {
      drawnOfVehicle = nowOfVehicle;
      const others = process === undefined ? 0 : state.processes[process].length - 1;
      const words = others > 0 ? `${process}, which runs ${others} more vehicles` : "this vehicle";
      replace(Vehicle.buttons, process === undefined ? [] : [killing(state, process, words)]);
    }
  }

  function replace(holder, children) {
    const had = holder.contains(document.activeElement) ? [...holder.children].indexOf(document.activeElement) : -1;
    holder.replaceChildren(...children);
    if (had >= 0) children[Math.min(had, children.length - 1)]?.focus();
  }

  return { start: (given) => { settings = given; }, draw };
})();
