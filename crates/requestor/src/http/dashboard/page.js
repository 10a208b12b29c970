// Operations as they happen. All of it is texts of callers and providers, so it is only ever put in as text.

const SHOWN = 100;       // Rows at first; more on demand, at most so many pages.
const PAGES_MAX = 20;
const SECONDS = 120;     // Of the plot.
const REFRESH = 5000;    // Kinds, and what was behind.
const PAUSE_MAX = 15000; // Between attempts to connect.
const ENDS = { succeeded: "Succeeded", failed: "Failed", canceled: "Canceled" };

const $ = (id) => document.getElementById(id);
const operations = new Map(); // By id, which sorts by time.
const ended = [];             // [second, succeeded, others], for the plot.
let shown = SHOWN, older = null, dirty = true, opened = null, kinds = [];

const element = (name, text = "", kind = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = kind;
  return made;
};

// The API, as any caller uses it.

const call = async (path, options = {}) => {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  $("key").hidden = response.status !== 401;
  return response;
};
const json = async (path) => {
  const response = await call(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
};
// What went wrong, from a problem document.
const problem = async (response) => {
  const { title, detail, errors } = await response.json().catch(() => ({ title: `status ${response.status}` }));
  const all = (errors ?? []).map(({ pointer, detail }) => `\n${pointer || "/"}: ${detail}`);
  return `${title}${detail ? `: ${detail}` : ""}${all.join("")}`;
};

// What is known.

const put = (operation) => {
  const known = operations.get(operation.id);
  if (known?.lastUpdatedAt > operation.lastUpdatedAt) return;
  operations.set(operation.id, operation);
  dirty = true;
};

const loadPage = async () => {
  const page = await json(older ?? `/v1/operations?pageSize=${SHOWN}`);
  page.operations.forEach(put);
  // So that the plot does not begin empty.
  if (!ended.length) page.operations.filter(({ status }) => STATUSES.indexOf(status) >= 2)
    .sort((a, b) => (a.lastUpdatedAt < b.lastUpdatedAt ? -1 : 1)).forEach(({ lastUpdatedAt, status }) => count(lastUpdatedAt, status));
  older = page.nextPageToken &&
    `/v1/operations?pageSize=${SHOWN}&pageToken=${encodeURIComponent(page.nextPageToken)}`;
  dirty = true;
};

// An event changes what it tells of; what it does not tell comes when somebody looks at it.
const happened = ({ type, operation: id, kind, at, data = {} }) => {
  if (type === "created") put({ id, kind, status: "NotStarted", createdAt: at, lastUpdatedAt: at, attempt: 1 });
  const known = operations.get(id);
  const end = ENDS[type];
  if (end) count(at, end);
  if (!known) return;
  const change = { lastUpdatedAt: at };
  if (end) Object.assign(change, { status: end, error: data.problem, percentComplete: end === "Succeeded" ? 100 : undefined });
  if (type === "progress") Object.assign(change, { status: "Running", percentComplete: data.percent, message: data.message, attempt: data.attempt });
  if (type === "attempt-failed") Object.assign(change, { message: data.problem?.title, attempt: data.attempt });
  if (type === "retried") Object.assign(change, { status: "NotStarted", error: undefined, attempt: data.attempt });
  operations.set(id, { ...known, ...change });
  dirty = true;
  if (opened === id) look(id);
};

const count = (at, end) => {
  const second = Math.floor(Date.parse(at) / 1000);
  let last = ended.at(-1);
  if (last?.[0] !== second) ended.push((last = [second, 0, 0]));
  last[end === "Succeeded" ? 1 : 2] += 1;
  while (ended.length > SECONDS) ended.shift();
};

const forgetOld = () => {
  if (operations.size <= 2 * shown) return;
  const ids = [...operations.keys()].sort();
  ids.slice(0, ids.length - shown).forEach((id) => operations.delete(id));
};

// The stream of events: fetch, since an EventSource can send no key.

const follow = async (after) => {
  const headers = { Accept: "text/event-stream", ...(after && { "Last-Event-ID": after }) };
  const response = await call("/v1/events", { headers });
  if (!response.ok) throw new Error(await problem(response));
  connection("live", true);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last = after;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return last;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const field = (name) => event.split("\n").filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trim()).join("\n");
      if (!field("data")) continue;
      last = field("id") || last;
      const told = JSON.parse(field("data"));
      if (told.type === "snapshot") told.data.operations?.forEach(put);
      else happened(told);
    }
    forgetOld();
    position = last;
  }
};
let position;

const connection = (text, live) => {
  $("connection").textContent = text;
  $("connection").className = live ? "" : "away";
};

const run = async () => {
  for (let pause = 500; ; pause = Math.min(2 * pause, PAUSE_MAX)) {
    try {
      if (!position) { older = null; await loadPage(); }
      await follow(position);
      pause = 500;
    } catch (error) {
      connection(error.message, false);
    }
    await new Promise((done) => setTimeout(done, pause * (0.5 + Math.random() / 2)));
  }
};

const loadKinds = async () => {
  ({ kinds } = await json("/v1/kinds"));
  const choice = $("ask").querySelector("select");
  const names = kinds.map(({ kind }) => kind);
  if (names.join() !== [...choice.options].map(({ value }) => value).join()) {
    const chosen = choice.value || "echo";
    choice.replaceChildren(...names.map((name) => element("option", name)));
    if (names.includes(chosen)) choice.value = chosen;
  }
  dirty = true;
};

// The page.

const STATUSES = ["NotStarted", "Running", "Succeeded", "Failed", "Canceled"];

const took = ({ status, createdAt, lastUpdatedAt }) => {
  const until = STATUSES.indexOf(status) < 2 ? Date.now() : Date.parse(lastUpdatedAt);
  const seconds = Math.max(0, until - Date.parse(createdAt)) / 1000;
  return seconds < 10 ? `${seconds.toFixed(2)} s` : seconds < 120 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
};

const progressCell = ({ status, percentComplete, message, error, lastProblem }) => {
  const cell = element("td", "", "progress");
  if (status === "Running" || (percentComplete ?? 0) > 0) {
    const bar = element("progress");
    bar.max = 100;
    if (percentComplete !== undefined) bar.value = percentComplete;
    cell.append(bar, element("span", percentComplete === undefined ? "" : ` ${Math.round(percentComplete)} %`));
  }
  cell.append(element("span", error?.title ?? message ?? lastProblem?.title ?? "", "message"));
  return cell;
};

const row = (operation) => {
  const { id, kind, status, createdAt, attempt } = operation;
  const made = element("tr");
  made.dataset.id = id;
  made.tabIndex = 0;
  made.append(element("td", new Date(createdAt).toLocaleTimeString()), element("td", kind), element("td", status, status),
    progressCell(operation), element("td", attempt), element("td", took(operation)), element("td", id, "id"));
  return made;
};

const kindRow = ({ kind, steps, queue, providersSeen, concurrency, effect, version, live }) => {
  const open = [...operations.values()].filter((one) => one.kind === kind && STATUSES.indexOf(one.status) < 2).length;
  const seen = queue ? `plain server at ${queue}` : live === false ? "none" : providersSeen;
  const made = element("tr");
  made.append(element("td", steps ? `${kind} = ${steps.join(" → ")}` : kind), element("td", seen, live === false ? "gone" : ""),
    element("td", concurrency ?? ""), element("td", effect ?? ""), element("td", version ?? ""), element("td", open));
  return made;
};

const plot = () => {
  const now = Math.floor(Date.now() / 1000);
  const peak = Math.max(1, ...ended.map(([, good, bad]) => good + bad));
  const bars = [];
  const bar = (second, from, height, kind) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const place = { x: (SECONDS - (now - second)) * 5 - 5, y: 90 - from - height, width: 4, height };
    Object.entries(place).forEach(([name, value]) => rect.setAttribute(name, value));
    rect.setAttribute("class", kind);
    bars.push(rect);
  };
  for (const [second, good, bad] of ended) {
    if (now - second >= SECONDS) continue;
    const [low, high] = [good, bad].map((number) => (number / peak) * 88);
    if (good) bar(second, 0, low, "Succeeded");
    if (bad) bar(second, low, high, "Failed");
  }
  $("plot").replaceChildren(...bars);
  $("peak").textContent = ended.length ? peak : 0;
};

const draw = () => {
  const all = [...operations.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
  const counts = STATUSES.map((status) => [status, all.filter((one) => one.status === status).length]);
  $("counts").replaceChildren(...counts.map(([status, number]) => {
    const made = element("div");
    made.append(element("b", number, status), element("span", status));
    return made;
  }));
  const only = $("only").value;
  const rows = all.filter(({ status }) => !only || status === only).slice(0, shown);
  const focused = document.activeElement?.dataset?.id;
  $("operations").replaceChildren(...rows.map(row));
  if (focused) document.querySelector(`#operations tr[data-id="${CSS.escape(focused)}"]`)?.focus();
  $("none").hidden = rows.length > 0;
  $("more").hidden = !older || shown >= PAGES_MAX * SHOWN;
  $("kinds").replaceChildren(...kinds.map(kindRow));
};

// One operation.

const look = async (id) => {
  opened = id;
  const operation = await json(`/v1/operations/${id}?redirect=false`);
  const { events } = await json(`/v1/operations/${id}/events?pageSize=200`);
  if (opened !== id) return;
  put(operation);
  const open = STATUSES.indexOf(operation.status) < 2;
  $("detail").querySelector("h2").textContent = `${operation.kind}: ${operation.status}`;
  $("cancel").hidden = !open || operation.cancelRequested;
  $("retry").hidden = operation.status !== "Failed";
  $("record").textContent = JSON.stringify(operation, null, 2);
  $("log").replaceChildren(...events.map(({ at, type, data }) => {
    const made = element("li");
    made.append(element("time", new Date(at).toLocaleTimeString()), `${type} ${JSON.stringify(data)}`);
    return made;
  }));
  const result = open ? null : await call(`/v1/operations/${id}/result`);
  $("result").textContent = result ? (await result.text()).slice(0, 100_000) : "not yet";
  if (!$("detail").open) $("detail").showModal();
};

const act = (path) => async () => {
  const response = await call(`/v1/operations/${opened}/${path}`, { method: "POST" });
  if (response.ok) await look(opened);
  else $("result").textContent = await problem(response);
};

$("cancel").addEventListener("click", act("cancel"));
$("retry").addEventListener("click", act("retry"));
$("detail").addEventListener("close", () => { opened = null; });
$("operations").addEventListener("click", ({ target }) => look(target.closest("tr").dataset.id));
$("operations").addEventListener("keydown", ({ key, target }) => { if (key === "Enter") look(target.dataset.id); });
$("only").addEventListener("change", () => { dirty = true; });
$("more").addEventListener("click", async () => { shown += SHOWN; await loadPage(); });
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").querySelector("input").value.trim());
  location.reload();
});
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [kind, body] = [$("ask").querySelector("select").value, $("ask").querySelector("textarea").value];
  const headers = { "Content-Type": "application/json" };
  const response = await call(`/v1/requests/${encodeURIComponent(kind)}`, { method: "POST", headers, body });
  $("refused").hidden = response.ok;
  if (response.ok) put(await response.json());
  else $("refused").textContent = await problem(response);
});

// Drawn a few times a second, however much happens; the rest of the time it costs nothing.
setInterval(() => {
  const running = [...operations.values()].some(({ status }) => status === "Running");
  if (dirty || running) { dirty = false; draw(); }
}, 250);
setInterval(plot, 1000);
setInterval(() => loadKinds().catch(() => {}), REFRESH);
loadKinds().catch(() => {});
run();
