// The page at `/`: lists runs, follows one. It uses the public API only, and shows what engines wrote as text only.
"use strict";

const API = "/api/v1";
const LIST_MS = 2000;
const LISTED = 50;
const LINES_MAX = 2000; // what a page keeps; the log file has them all
const LINES_FIRST = 500;
const MOVES = /^(run|build)\.(waiting|started|cancel_requested|lost|completed)$/;
const LEVELS = new Map([["warn", "warning"], ["warning", "warning"], ["error", "error"], ["critical", "error"], ["debug", "quiet"]]);
const WHEN = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" };
const $ = (id) => document.getElementById(id);

let current = null; // the id of the run that is shown
let source = null;
let upto = 0; // the last event that the head of that run has seen
let waiting = []; // events that came since the last frame

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className || "";
  made.textContent = text || "";
  return made;
}

async function ask(path, options) {
  const answer = await fetch(API + path, options);
  if (answer.status === 401 && !$("door").open) $("door").showModal();
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail || body.title || answer.statusText);
  return body;
}

function say(text) {
  $("state").textContent = text;
}

// Numbers

const bytes = (n) => (n < 1000 ? `${n} B` : n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`);
const seconds = (s) => (s < 100 ? `${s.toFixed(2)}s` : `${Math.floor(s / 60)}m${String(Math.floor(s % 60)).padStart(2, "0")}s`);

// The list

async function list() {
  try {
    const runs = (await ask(`/runs?limit=${LISTED}`)).data;
    const shown = runs.map((run) => {
      const button = element("button");
      button.type = "button";
      button.dataset.run = run.id;
      button.setAttribute("aria-current", String(run.id === current));
      const what = run.error_message || run.summary || (run.waiting_for ? `waiting for ${run.waiting_for}` : "");
      const took = run.duration_ms === null ? "" : ` · ${seconds(run.duration_ms / 1000)}`;
      button.append(
        element("code", "", `…${run.id.slice(-10)}`),
        element("span", `pill ${run.status}`, run.status),
        element("small", "", `${new Date(run.created_at).toLocaleString([], WHEN)}${took}${what ? ` · ${what}` : ""}`),
      );
      return button;
    });
    const focused = document.activeElement?.dataset?.run;
    $("runs").replaceChildren(...shown);
    shown.find((button) => button.dataset.run === focused)?.focus({ preventScroll: true });
    say(runs.length === LISTED ? `the newest ${LISTED}` : runs.length ? "" : "no runs yet");
  } catch (error) {
    say(`no answer from the service: ${error.message}`);
  }
}

async function keepListing() {
  if (!document.hidden) await list();
  setTimeout(keepListing, LIST_MS);
}

// One run

async function show(id) {
  source?.close();
  current = id;
  upto = 0;
  waiting = [];
  $("log").replaceChildren();
  $("artifacts").replaceChildren();
  for (const button of $("runs").children) button.setAttribute("aria-current", String(button.dataset.run === id));
  try {
    const run = await head(id);
    const earlier = (await ask(`/runs/${id}/logs?tail=${LINES_FIRST}`)).previous_before_id;
    if (id === current) follow(run, earlier === null ? 0 : earlier - 1);
  } catch (error) {
    say(error.message);
  }
}

async function head(id) {
  const run = await ask(`/runs/${encodeURIComponent(id)}`);
  const ended = run.finished !== null;
  const artifacts = ended ? (await ask(`/runs/${id}/artifacts`)).data : [];
  if (id !== current || run.last_event_id < upto) return run; // overtaken
  upto = run.last_event_id;
  $("name").textContent = run.id;
  $("status").textContent = run.status;
  $("status").className = `pill ${run.status}`;
  $("cancel").hidden = ended;
  $("cancel").disabled = run.cancel_requested_at !== null;
  $("logfile").href = `${API}/runs/${id}/logfile`;
  const inputs = run.inputs.map((input) => input.name).join(", ");
  const facts = [`config ${run.config_id} v${run.config_version}`, inputs && `with ${inputs}`, run.error_message || run.summary];
  $("facts").textContent = facts.filter(Boolean).join(" · ");
  $("artifacts").replaceChildren(...artifacts.map(link));
  for (const part of ["head", "log"]) $(part).hidden = false;
  $("empty").hidden = true;
  return run;
}

function link(artifact) {
  const made = element("a", "", artifact.name);
  made.href = `${API}/artifacts/${artifact.id}/content`;
  made.download = artifact.name.split("/").pop();
  const whole = element("span");
  whole.append(made, element("small", "", ` ${bytes(artifact.size)}`));
  return whole;
}

function follow(run, after) {
  if (after) add(element("div", "quiet"), "", "", "Earlier lines are in events.ndjson.");
  const mine = new EventSource(`${API}/runs/${run.id}/events?names=off&after_id=${after}`);
  source = mine;
  mine.onmessage = (message) => {
    const event = JSON.parse(message.data);
    if (!waiting.length) requestAnimationFrame(() => draw(run));
    waiting.push(event);
    if (waiting.length > 2 * LINES_MAX) waiting.splice(0, LINES_MAX); // a page in the background draws no frames
    if (event.run_id === run.id && event.type === "run.completed") mine.close(); // or it would come back for more
    if (MOVES.test(event.type)) head(run.id).catch((error) => say(error.message));
  };
  mine.onerror = () => {
    if (mine.readyState === EventSource.CLOSED && mine === source) say("the stream was refused; choose the run again");
  };
}

function draw(run) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  for (const event of waiting.splice(0).slice(-LINES_MAX)) {
    if (event.run_id !== run.id && event.build_id !== run.build_id) continue;
    const at = seconds(Math.max(0, (Date.parse(event.created_at) - Date.parse(run.created_at)) / 1000));
    const [tag, className, text] = words(event);
    add(element("div", `${tag} ${className}`), at, tag, text);
  }
  while (log.childElementCount > LINES_MAX) log.firstElementChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function add(row, at, tag, text) {
  row.append(element("time", "", at), element("b", "", tag), element("span", "", text));
  $("log").append(row);
}

function loudness(event) {
  const loud = event.stream === "stderr" && /^\s*(?:(error|fatal|critical|traceback)|warn(?:ing)?)\b/i.exec(event.message);
  return loud ? (loud[1] ? "error" : "warning") : "";
}

// An event as tag, class and text
function words(event) {
  const [kind, what] = event.type.split(/\.(.*)/s);
  if (kind === "engine") {
    return [kind, LEVELS.get(event.level) || "", typeof event.message === "string" ? event.message : event.type];
  }
  switch (what) {
    case "log":
      if (event.message === undefined) return [kind, "quiet", "[redacted]"];
      return [kind === "run" ? event.stream : kind, loudness(event) || (kind === "build" ? "quiet" : ""), event.message];
    case "created":
      return [kind, "", event[`${kind}_id`]];
    case "waiting":
      return [kind, "quiet", `waiting for ${event.build_id || event.for}`];
    case "started":
      return [kind, "", event.python ? `started with Python ${event.python}` : "started"];
    case "step": {
      const mark = { started: "·", completed: "✓", failed: "✗" }[event.status];
      const took = event.duration_ms === undefined ? "" : `  ${seconds(event.duration_ms / 1000)}`;
      return [kind, event.status === "started" ? "quiet" : event.status, `${mark} ${event.step}${took}  ${event.message || ""}`];
    }
    case "artifact":
      return [kind, "", `left ${event.name}, ${bytes(event.size)}`];
    case "completed": {
      const good = event.status === "succeeded" || event.status === "active";
      const code = event.exit_code === null ? "" : ` · exit code ${event.exit_code}`;
      const why = event.error_message || event.summary;
      return [kind, good ? "succeeded" : "failed", `${good ? "✓" : "✗"} ${event.status}${code}${why ? ` · ${why}` : ""}`];
    }
    default: {
      const { reason, signal } = event;
      return [kind, "warning", [what.replaceAll("_", " "), signal, reason].filter(Boolean).join(": ")];
    }
  }
}

$("runs").addEventListener("click", (click) => {
  const button = click.target.closest("button");
  if (button) location.hash = button.dataset.run;
});
$("cancel").addEventListener("click", async () => {
  $("cancel").disabled = true;
  try {
    await ask(`/runs/${current}/cancel`, { method: "POST" });
  } catch (error) {
    say(error.message);
  }
});
$("door").addEventListener("submit", async (submit) => {
  submit.preventDefault();
  const answer = await fetch(`${API}/session`, { method: "POST", headers: { "X-API-Key": $("key").value.trim() } });
  $("refusal").textContent = answer.ok ? "" : "This key is not good for anything here.";
  if (!answer.ok) return;
  $("key").value = "";
  $("door").close();
  list();
  chosen();
  mayLeave();
});
$("leave").addEventListener("click", async () => {
  await fetch(`${API}/session`, { method: "DELETE" });
  location.reload(); // nothing that the key has shown stays on the page
});
async function mayLeave() {
  try {
    $("leave").hidden = (await ask("/session")).key_id === "anonymous"; // where nobody needs a key there is no session
  } catch (error) {
    say(error.message);
  }
}
const chosen = () => {
  if (/^#run_\w+$/.test(location.hash)) show(location.hash.slice(1));
};
addEventListener("hashchange", chosen);
chosen();
mayLeave();
keepListing();
