"use strict";
// Where the lines of the log come from: a server's stream, or the page itself.
const Source = (() => {
  // Calls `take` with lines as they come, `load` with what the machine is busy with, and `end` when no more will
  // come: with "complete", "gone" or "over".
  function stream(take, load, end) {
    const events = new EventSource("events");
    let failures = 0;
    events.addEventListener("log", (event) => {
      failures = 0;
      take(event.data.split("\n"));
    });
    events.addEventListener("load", (event) => load(JSON.parse(event.data)));
    events.addEventListener("end", (event) => {
      events.close();
      end(JSON.parse(event.data).complete ? "complete" : "over");
    });
    events.onerror = () => {
      failures += 1;
      if (failures < 5 && events.readyState !== EventSource.CLOSED) return;
      events.close();
      end("gone");
    };
  }

  async function embedded(element, take, end) {
    const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    take((await new Response(plain).text()).split("\n"));
    end("complete");
  }

  return { stream, embedded };
})();
