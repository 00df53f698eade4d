"use strict";
// The state of a run, folded from the events of its log: the same for a live page and for a replay.
// `apply` depends on nothing but its arguments. Vehicles are columns of numbers, so that ten thousand of
// them are copied in a millisecond; NaN is "not known".
const Fold = (() => {
  const STATES = ["starting", "joined", "learning", "trained on", "tested", "waiting", "lost", "failed", "done"];
  const [STARTING, JOINED, LEARNING, TRAINED_ON, TESTED, WAITING, LOST, FAILED, DONE] = STATES.keys();
  const COLUMNS = [
    "stage", "round", "learnt", "loss", "cloudLoss", "val", "start", "local", "ood", "fleet",
    "queries", "up", "down", "rejects", "returns", "leftOut", "seen", "pictures",
    "roundTrip", "reconnects", "losses", "away", "rate", "ratedAt", "ratedBytes",
  ];
  const COUNTED = ["queries", "up", "down", "rejects", "returns", "leftOut", "pictures", "reconnects", "losses", "away"];
  // After which there may be other pictures of a vehicle's frames.
  const PICTURED = ["validation", "evaluation", "turn_done"];
  const MOST_NEWS = 500;
  const RATED_S = 1;
  const STILL_S = 5;

  function empty() {
    const columns = {};
    for (const name of COLUMNS) columns[name] = new Float64Array(0);
    return {
      ids: [], index: new Map(), state: new Uint8Array(0), columns,
      algorithm: "", rounds: 0, stages: 0, stage: -1, round: 0, kind: "",
      began: NaN, time: NaN, events: 0, runs: 0, curve: [], cloudLoss: NaN, cloud: "", waiting: "",
      news: [], newsCount: 0, processes: {}, dead: {}, paused: false, stopped: false, ended: false, result: null,
    };
  }

  function copy(state) {
    const columns = {};
    for (const name of COLUMNS) columns[name] = state.columns[name].slice();
    return {
      ...state, ids: state.ids.slice(), index: new Map(state.index), state: state.state.slice(), columns,
      curve: state.curve.slice(), news: state.news.slice(), dead: { ...state.dead },
    };
  }

  // The vehicle's row, made where it is new.
  function row(state, vehicle) {
    const known = state.index.get(vehicle);
    if (known !== undefined) return known;
    const place = state.ids.length;
    if (place === state.state.length) {
      const capacity = Math.max(16, 2 * place);
      const grow = (old, fill) => {
        const wider = new old.constructor(capacity).fill(fill);
        wider.set(old);
        return wider;
      };
      state.state = grow(state.state, STARTING);
      for (const name of COLUMNS) state.columns[name] = grow(state.columns[name], COUNTED.includes(name) ? 0 : NaN);
    }
    state.ids.push(vehicle);
    state.index.set(vehicle, place);
    return place;
  }

  function tell(state, event, kind, text) {
    state.newsCount += 1;
    state.news.push({ number: state.newsCount, time: event.time, kind, vehicle: event.vehicle || "", text });
    if (state.news.length > 2 * MOST_NEWS) state.news = state.news.slice(-MOST_NEWS);
  }

  const number = (value) => (typeof value === "number" ? value : NaN);

  function counters(columns, at, event) {
    columns.queries[at] = number(event.queries);
    columns.up[at] = number(event.uplink_bytes);
    columns.down[at] = number(event.downlink_bytes);
    if (typeof event.round_trip_ms === "number") columns.roundTrip[at] = event.round_trip_ms / 1000;
    if (typeof event.reconnects === "number") columns.reconnects[at] = event.reconnects;
    const [bytes, took] = [columns.up[at] + columns.down[at], event.time - columns.ratedAt[at]];
    // What has no time, the result, tells nothing of a rate.
    if (Number.isNaN(took) ? columns.ratedAt[at] >= 0 : took < RATED_S) return;
    columns.rate[at] = Math.max(0, bytes - columns.ratedBytes[at]) / took;
    columns.ratedAt[at] = number(event.time);
    columns.ratedBytes[at] = bytes;
  }

  const PLAIN = {
    processes(state, event) {
      state.processes = event.processes;
      state.dead = {};
      state.paused = state.stopped = false;
    },
    run(state, event) {
      for (const vehicle of event.vehicles) row(state, vehicle);
      Object.assign(state, { algorithm: event.algorithm, rounds: event.rounds, stages: event.stages });
      state.stage = event.first - 1;
      state.runs += 1;
      // What a cloud did after its last commit is done again.
      state.curve = state.curve.filter((point) => point.stage < event.first);
      state.paused = state.stopped = state.ended = false;
      if (state.runs > 1 || event.first) tell(state, event, "resume", `the cloud goes on with stage ${event.first}`);
    },
    learning(state, event) {
      state.cloudLoss = number(event.loss);
      state.cloud = `the cloud trains ${event.done} of ${event.total}`;
    },
    learned(state) {
      state.cloud = "";
    },
    curve(state, event) {
      state.curve.push({
        stage: event.stage, round: event.round, val: number(event.val_miou), loss: number(event.loss),
        bytes: event.uplink_bytes + event.downlink_bytes, wall: event.wall_s,
      });
    },
    committed(state, event) {
      state.stage = event.stage;
    },
    repeated(state, event) {
      tell(state, event, "loss", `no vehicle kept the deadline of round ${event.round}: its stage is repeated`);
    },
    converged(state, event) {
      tell(state, event, "end", `converged in round ${event.round}`);
    },
    killed(state, event) {
      state.dead[event.process] = true;
      tell(state, event, "kill", `${event.process} killed by the operator`);
    },
    revived(state, event) {
      delete state.dead[event.process];
      tell(state, event, "resume", `${event.process} started again by the operator`);
    },
    crashed(state, event) {
      tell(state, event, "loss", `${event.process} ended unexpectedly (${event.how}); started again`);
    },
    paused(state, event) {
      state.paused = true;
      tell(state, event, "resume", "paused by the operator");
    },
    resumed(state, event) {
      state.paused = false;
      tell(state, event, "resume", "resumed by the operator");
    },
    stopped(state, event) {
      state.stopped = true;
      tell(state, event, "end", "the run was stopped");
    },
    // What an observer at the broker waits for.
    waiting(state, event) {
      if (state.runs > 0 && !state.ended && event.for) tell(state, event, "loss", `waiting for ${event.for}`);
      state.waiting = event.for;
    },
    result(state, event) {
      state.ended = true;
      if (typeof event.uplink_bytes === "number") state.result = event;
      for (let at = 0; at < state.ids.length; at++) if (state.state[at] !== FAILED) state.state[at] = DONE;
      tell(state, event, "end", "the run is complete");
    },
    // What `result.json` says, told after the log.
    final(state, event) {
      state.result = event;
      state.ended = true;
      for (const [vehicle, entry] of Object.entries(event.vehicles)) {
        const at = row(state, vehicle);
        counters(state.columns, at, entry);
        state.columns.start[at] = number(entry.initial_local_miou);
        state.columns.local[at] = number(entry.local_miou);
        state.columns.ood[at] = number(entry.ood_miou);
        state.columns.fleet[at] = number(entry.fleet_miou);
        state.columns.rejects[at] = entry.rejects;
        if (state.state[at] !== FAILED) state.state[at] = DONE;
      }
    },
  };

  const OF_VEHICLES = {
    // Heard by an observer to whom the cloud tells nothing.
    present(state, event, at) {
      if (state.ended || state.state[at] === FAILED) return;
      state.columns.away[at] = event.online ? 0 : 1;
      if (state.state[at] === STARTING || state.state[at] === LOST) state.state[at] = JOINED;
    },
    joined(state, event, at) {
      const again = state.columns.away[at] > 0 || state.state[at] === LOST;
      state.columns.away[at] = 0;
      if (state.state[at] !== FAILED) state.state[at] = JOINED;
      tell(state, event, "join", again ? "came back" : `joined with ${event.encoder}`);
    },
    left(state, event, at) {
      if (state.ended || state.state[at] === FAILED) return;
      state.columns.away[at] = 1;
      state.columns.losses[at] += 1;
      tell(state, event, "loss", "lost: its connection ended");
    },
    // The same process as before, over a new connection.
    back(state, event, at) {
      state.columns.away[at] = 0;
      if (state.ended || state.state[at] === FAILED) return;
      state.state[at] = JOINED;
      tell(state, event, "join", "came back");
    },
    turn(state, event, at) {
      Object.assign(state, { round: event.round, kind: event.kind });
      state.state[at] = event.kind === "learn" || event.kind === "train" ? LEARNING : TESTED;
      state.columns.stage[at] = event.stage;
      state.columns.round[at] = event.round;
    },
    traffic(state, event, at) {
      counters(state.columns, at, event);
    },
    learning(state, event, at) {
      state.state[at] = TRAINED_ON;
      state.columns.cloudLoss[at] = number(event.loss);
    },
    validation(state, event, at) {
      state.columns.val[at] = number(event.best);
    },
    evaluation(state, event, at) {
      const column = event.kind === "initial" ? { test: "start" } : { test: "local", ood: "ood", fleet: "fleet" };
      if (column[event.split]) state.columns[column[event.split]][at] = number(event.miou);
    },
    turn_done(state, event, at) {
      state.state[at] = WAITING;
      counters(state.columns, at, event);
      if (typeof event.loss === "number") state.columns.loss[at] = event.loss;
      if (event.kind === "learn" || event.kind === "train") state.columns.learnt[at] = event.round;
    },
    restarted(state, event, at) {
      state.columns.returns[at] += 1;
      tell(state, event, "resume", "came back: its turn starts over");
    },
    taken_back(state, event, at) {
      tell(state, event, "loss", `its turn of round ${event.round} does not count: it was for the worse`);
    },
    "left-out"(state, event, at) {
      state.columns.leftOut[at] += 1;
      tell(state, event, "loss", "is left out of this turn: what it sent is unlike that of the others");
    },
    doubted(state, event) {
      tell(state, event, "loss", "sent something unlike that of the others; it counts");
    },
    shortened(state, event) {
      tell(state, event, "loss", "moved the weights farther than the bound; it counts as far as that");
    },
    dropped(state, event, at) {
      state.state[at] = WAITING;
      tell(state, event, "loss", `missed the deadline of round ${event.round}`);
    },
    failed(state, event, at) {
      state.state[at] = FAILED;
      tell(state, event, "loss", `failed, the run goes on without it: ${event.reason}`);
    },
    out_of_data(state, event, at) {
      state.state[at] = LOST;
      tell(state, event, "loss", `has used its ${event.budget_mb} MB of this month`);
    },
    readmitted(state, event, at) {
      state.state[at] = WAITING;
      tell(state, event, "resume", `takes part again from round ${event.round} on: ${event.reason}`);
    },
    awaited(state, event, at) {
      state.state[at] = LOST;
      tell(state, event, "loss", `can't go on, the run waits for it: ${event.reason}`);
    },
    reject(state, event, at) {
      state.columns.rejects[at] = event.count;
      tell(state, event, "reject", `a message was rejected: ${event.reason}`);
    },
    update(state, event) {
      const what = `${event.kind} ${event.update}, version ${event.version}`;
      const said = {
        offered: `is offered ${what}`,
        refused: `refused ${what}: ${event.reason}`,
        trial: `runs ${what} from its next turn on, if it can finish that`,
        used: `has finished a turn with ${what}`,
        "rolled-back": `took ${what} back: ${event.reason}`,
      }[event.state];
      const kinds = { refused: "reject", "rolled-back": "loss" };
      if (said) tell(state, event, kinds[event.state] ?? "resume", said);
    },
    undelivered(state, event) {
      tell(state, event, "loss", `could not be sent to: ${event.reason}`);
    },
  };

  // Put one event of the log into the state; an event that it does not know changes only time and count.
  function apply(state, event) {
    state.events += 1;
    if (typeof event.time === "number") {
      if (Number.isNaN(state.began)) state.began = event.time;
      state.time = event.time;
    }
    const name = event.event;
    if (typeof event.vehicle !== "string") {
      if (Object.hasOwn(PLAIN, name)) PLAIN[name](state, event);
    } else if (name === "reject" && !state.index.has(event.vehicle)) {
      tell(state, event, "reject", `a message of a stranger was rejected: ${event.reason}`);
    } else if (Object.hasOwn(OF_VEHICLES, name)) {
      const at = row(state, event.vehicle);
      state.columns.seen[at] = event.time;
      if (PICTURED.includes(name)) state.columns.pictures[at] += 1;
      OF_VEHICLES[name](state, event, at);
      // The cloud grants turns to vehicles that are away, and works for them: they stay lost meanwhile.
      if (state.columns.away[at] > 0 && state.state[at] !== FAILED && !state.ended) state.state[at] = LOST;
    }
    return state;
  }

  // A line of the log; one that was torn by a crash, or tells what can't be, is passed over.
  function applyLine(state, line) {
    try {
      return apply(state, JSON.parse(line));
    } catch {
      return state;
    }
  }

  const sum = (state, name) => {
    let total = 0;
    for (let at = 0; at < state.ids.length; at++) total += state.columns[name][at] || 0;
    return total;
  };

  // The mIoU that a vehicle is known by: on its own test frames at the end, before that on validation frames.
  const miou = (state, at) => {
    const { local, val, start } = state.columns;
    return Number.isNaN(local[at]) ? (Number.isNaN(val[at]) ? start[at] : val[at]) : local[at];
  };

  const loss = (state, at) => {
    const { loss: own, cloudLoss } = state.columns;
    return Number.isNaN(own[at]) ? (Number.isNaN(cloudLoss[at]) ? state.cloudLoss : cloudLoss[at]) : own[at];
  };

  // Rounds since a vehicle has last learnt.
  const staleness = (state, at) => {
    const learnt = state.columns.learnt[at];
    return Math.max(0, Math.min(state.round, state.rounds || state.round) - (Number.isNaN(learnt) ? 0 : learnt));
  };

  // Bytes a second that a vehicle sends and is sent; none where nothing has been told for a while.
  const rate = (state, at) => {
    const { rate: latest, ratedAt } = state.columns;
    return state.time - ratedAt[at] > STILL_S ? 0 : latest[at];
  };

  return { STATES, LOST, FAILED, DONE, empty, copy, apply, applyLine, sum, miou, loss, staleness, rate };
})();
