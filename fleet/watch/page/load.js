"use strict";
// What the run's processes and their machine are busy with now; a replay does not know.
const Load = (() => {
  const [section, list] = ["load", "loads"].map((id) => document.getElementById(id));
  let latest = null;

  function take(load) {
    latest = load;
  }

  const cores = (value) => (Show.known(value) ? `${value.toFixed(2)} cores` : "–");

  // Processes that run vehicles are many: what they take together is told.
  function together(state) {
    const rows = new Map();
    for (const [name, { cpu, memory }] of Object.entries(latest.processes)) {
      const runsVehicles = (state.processes[name] || []).length > 0;
      const row = rows.get(runsVehicles ? "" : name) || { count: 0, cpu: 0, memory: 0 };
      rows.set(runsVehicles ? "" : name, { count: row.count + 1, cpu: row.cpu + cpu, memory: row.memory + memory });
    }
    return [...rows].map(([name, row]) => [name || `vehicles, ${row.count} process${row.count === 1 ? "" : "es"}`, row]);
  }

  function draw(state, over) {
    section.hidden = latest === null || over || state.ended || state.stopped;
    if (section.hidden) return;
    const { cores: all, busy, memory, free } = latest.machine;
    Show.facts(list, [
      ...together(state).map(([name, row]) => [name, `${cores(row.cpu)}, ${Show.bytes(row.memory)}`]),
      ["this machine", `${busy.toFixed(1)} of ${all} cores, ${Show.bytes(memory - free)} of ${Show.bytes(memory)}`],
    ]);
  }

  // Of the process that runs a vehicle.
  function ofVehicle(state, at) {
    const process = latest && Object.keys(state.processes).find((name) => state.processes[name].includes(state.ids[at]));
    const load = process && !state.ended && latest.processes[process];
    return load ? `${cores(load.cpu)}, ${Show.bytes(load.memory)}` : "–";
  }

  return { take, draw, ofVehicle };
})();
