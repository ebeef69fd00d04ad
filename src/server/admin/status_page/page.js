"use strict";
// Polls a second after each response, and updates changed elements only, so that the focus and the selection are kept.

const POLL_INTERVAL = 1000;
const TOKEN = "appferry.token";
const MARKS = { AVAILABLE: "✓", COPYING: "↻", PENDING: "…", FAILED: "✗", CANCELED: "–", SUPERSEDED: "–" };

const byId = (id) => document.getElementById(id);
const setIfChanged = (node, key, value) => { if (node[key] !== value) node[key] = value; };
const setState = (node, state) => { if (node.dataset.state !== state) node.dataset.state = state; };
const stateOf = (name) => (name ?? "").replace(/^(REGION|SYNCHRONIZATION)_STATE_/, "").replace("UNSPECIFIED", "");

/// An error response, with its reason, message and request id.
class ApiError extends Error {
  constructor(status, body) {
    super(`${body.reason}: ${body.message}` + (body.requestId ? ` (request ${body.requestId})` : ""));
    this.status = status;
  }
}

async function query(path) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(TOKEN)}` };
  const response = await fetch(`/api/${path}`, { headers, cache: "no-store" });
  const body = await response.json();
  if (!response.ok) throw new ApiError(response.status, body);
  return body;
}

/// Updates the rows of a table to `entries`, matched by `key` and in the same order. `cells` creates a new row, `fill` updates each one.
function updateRows(body, entries, key, cells, fill) {
  const existing = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  entries.forEach((entry, index) => {
    let row = existing.get(key(entry));
    existing.delete(key(entry));
    if (!row) {
      row = document.createElement("tr");
      row.dataset.key = key(entry);
      row.append(...cells(entry));
    }
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
    fill(row, entry);
  });
  existing.forEach((row) => row.remove());
}

const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);
const emptyCells = (count) => Array.from({ length: count }, () => element("td"));

function formatBytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = Number(count);
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) { value /= 1024; unit += 1; }
  return `${unit === 0 ? value : value.toFixed(2)} ${units[unit]}`;
}

const formatTime = (time) => (time ? new Date(time).toLocaleString() : "");
const processedBytes = (region) => Number(region.bytesCopied) + Number(region.bytesSkipped);
const percent = (region) => (Number(region.bytesTotal) > 0 ? Math.floor((100 * processedBytes(region)) / Number(region.bytesTotal)) : 0);

// The content was present before the copy and was not read.
const trustedSuffix = (region) => (region?.verification === "VERIFICATION_TRUSTED" ? " (trusted)" : "");

let pageToken = "";
let nextToken = "";

async function showOverview() {
  const [{ regions }, { images, nextPageToken }, running, recent] = await Promise.all([
    query("regions"),
    query(`images?page_token=${encodeURIComponent(pageToken)}`),
    query("synchronizations?state=RUNNING"),
    query("synchronizations"),
  ]);
  nextToken = nextPageToken;
  byId("first").disabled = pageToken === "";
  byId("next").disabled = nextToken === "";
  byId("none").hidden = images.length > 0 || pageToken !== "";

  // The newest synchronization of each image and region, with its progress.
  const copies = new Map();
  for (const synchronization of [...running.synchronizations, ...recent.synchronizations].reverse())
    for (const region of synchronization.regions)
      copies.set(`${synchronization.appId} ${region.regionId}`, { region, requestId: synchronization.requestId });

  const names = regions.map((region) => region.regionId);
  const heading = ["Image", ...names].join(" ");
  const head = byId("matrix").tHead;
  if (head.dataset.names !== heading) {
    head.dataset.names = heading;
    const row = element("tr");
    row.append(...["Image", ...names].map((name) => element("th", { scope: "col", textContent: name })));
    head.replaceChildren(row);
    byId("matrix").tBodies[0].replaceChildren();
  }
  const cells = (image) => {
    const name = element("th", { scope: "row", textContent: image.name });
    name.append(element("small", { textContent: `${image.imageId} ${image.imageVersion} · ${formatBytes(image.sizeBytes)}` }));
    return [name, ...names.map(() => { const cell = element("td"); cell.append(element("span")); return cell; })];
  };
  updateRows(byId("matrix").tBodies[0], images, (image) => image.imageId, cells, (row, image) => {
    names.forEach((name, index) => {
      const info = image.additionalRegionsInfo.find((info) => info.regionId === name);
      const copy = copies.get(`${image.imageId} ${name}`);
      const state = stateOf(info?.status);
      const cell = row.cells[index + 1];
      // A state with a synchronization links to it.
      const tag = copy ? "A" : "SPAN";
      if (cell.firstChild.tagName !== tag) cell.replaceChildren(element(tag.toLowerCase()));
      const text = cell.firstChild;
      const target = `#/synchronizations/${copy?.requestId}`;
      if (copy && text.getAttribute("href") !== target) text.setAttribute("href", target);
      const progress = state === "COPYING" && copy ? ` ${percent(copy.region)} %` : "";
      const home = image.homeRegionId === name ? " (home)" : "";
      setIfChanged(text, "textContent", state ? `${MARKS[state]} ${state}${trustedSuffix(info)}${progress}${home}` : "–");
      setState(text, state);
    });
  });

  const link = (one) => {
    const cell = element("th", { scope: "row" });
    cell.append(element("a", { href: `#/synchronizations/${one.requestId}`, textContent: one.requestId }));
    return [cell, ...emptyCells(4)];
  };
  updateRows(byId("recent").tBodies[0], recent.synchronizations, (one) => one.requestId, link, (row, one) => {
    const available = one.regions.filter((region) => stateOf(region.state) === "AVAILABLE").length;
    const state = stateOf(one.state);
    [one.appId, state, `${available} of ${one.regions.length}`, formatTime(one.createTime)]
      .forEach((text, index) => setIfChanged(row.cells[index + 1], "textContent", text));
    setState(row.cells[2], state);
  });
}

async function showSynchronization(requestId) {
  const { synchronization } = await query(`synchronizations/${encodeURIComponent(requestId)}`);
  setIfChanged(byId("title"), "textContent", `${synchronization.appId} · ${synchronization.requestId}`);
  const facts = [
    ["State", stateOf(synchronization.state)],
    ["Requested by", synchronization.principal],
    ["Requested", formatTime(synchronization.createTime)],
    ["Ended", formatTime(synchronization.finishTime)],
    ["Trace", synchronization.traceId],
  ].filter(([, value]) => value);
  const text = facts.flat().join("\n");
  if (byId("facts").dataset.text !== text) {
    byId("facts").dataset.text = text;
    byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
    setState(byId("facts").querySelector("dd"), stateOf(synchronization.state));
  }
  const cells = (region) => {
    const row = [element("th", { scope: "row", textContent: region.regionId }), ...emptyCells(4)];
    const bar = element("progress", { max: 100 });
    bar.setAttribute("aria-label", `Progress in ${region.regionId}`);
    row[2].append(bar, element("span"));
    row[4].className = "error";
    return row;
  };
  updateRows(byId("regions").tBodies[0], synchronization.regions, (region) => region.regionId, cells, (row, region) => {
    const state = stateOf(region.state);
    setIfChanged(row.cells[1], "textContent", `${MARKS[state] ?? ""} ${state}${trustedSuffix(region)}`);
    setState(row.cells[1], state);
    const [bar, text] = row.cells[2].children;
    setIfChanged(bar, "value", state === "AVAILABLE" ? 100 : percent(region));
    const skipped = Number(region.bytesSkipped) > 0 ? `, ${formatBytes(region.bytesSkipped)} already present` : "";
    setIfChanged(text, "textContent", `${formatBytes(processedBytes(region))} of ${formatBytes(region.bytesTotal)}${skipped}`);
    const next = region.nextAttemptTime ? `, next at ${new Date(region.nextAttemptTime).toLocaleTimeString()}` : "";
    setIfChanged(row.cells[3], "textContent", `${region.attempt}${next}`);
    const warnings = (region.warnings ?? []).map((warning) => `Warning: ${warning}`);
    setIfChanged(row.cells[4], "textContent", [region.error?.message ?? "", ...warnings].filter((text) => text).join("\n"));
  });
}

const signedIn = () => sessionStorage.getItem(TOKEN) !== null;
const subject = () => /^#\/synchronizations\/([^/]+)$/.exec(location.hash)?.[1];

function showSections() {
  byId("enter").hidden = signedIn();
  byId("leave").hidden = !signedIn();
  byId("overview").hidden = !signedIn() || subject() !== undefined;
  byId("one").hidden = !signedIn() || subject() === undefined;
}

let timer;
let round = 0;

async function refresh() {
  clearTimeout(timer);
  showSections();
  if (!signedIn() || document.hidden) return;
  const current = ++round;
  const state = byId("state");
  let problem;
  try {
    await (subject() ? showSynchronization(decodeURIComponent(subject())) : showOverview());
    problem = "";
  } catch (error) {
    problem = error instanceof ApiError ? error.message : "The service does not respond; retrying";
    if (error.status === 401 || (error.status >= 400 && /^(InvalidAccessKeyId|MissingCredentials)/.test(error.message))) signOut();
  }
  if (current !== round) return;
  setIfChanged(state, "textContent", problem || "Live");
  setIfChanged(state, "className", problem ? "trouble" : "");
  if (signedIn()) timer = setTimeout(refresh, POLL_INTERVAL);
}

function signOut() {
  sessionStorage.removeItem(TOKEN);
  showSections();
}

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value.trim());
  byId("token").value = "";
  byId("main").focus();
  refresh();
});
byId("leave").addEventListener("click", () => {
  signOut();
  setIfChanged(byId("state"), "textContent", "Signed out");
  byId("token").focus();
});
byId("first").addEventListener("click", () => { pageToken = ""; refresh(); });
byId("next").addEventListener("click", () => { pageToken = nextToken; refresh(); });
addEventListener("hashchange", () => {
  if (location.hash === "#main") return;
  ["title", "facts"].forEach((id) => { byId(id).replaceChildren(); delete byId(id).dataset.text; });
  byId("regions").tBodies[0].replaceChildren();
  byId("main").focus();
  refresh();
});
document.addEventListener("visibilitychange", refresh);
refresh();
