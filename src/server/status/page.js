"use strict";
// The page asks again a second after each answer, and changes only what has changed, so that whoever reads or has the focus is left alone.

const AGAIN = 1000;
const TOKEN = "appferry.token";
const MARKS = { AVAILABLE: "✓", COPYING: "↻", PENDING: "…", FAILED: "✗", CANCELED: "–", SUPERSEDED: "–" };

const at = (id) => document.getElementById(id);
const put = (node, key, value) => { if (node[key] !== value) node[key] = value; };
const mark = (node, state) => { if (node.dataset.state !== state) node.dataset.state = state; };
const stateOf = (name) => (name ?? "").replace(/^(REGION|SYNCHRONIZATION)_STATE_/, "").replace("UNSPECIFIED", "");

/// Refusals have the reason, the message and the request to ask about.
class Refused extends Error {
  constructor(status, told) {
    super(`${told.reason}: ${told.message}` + (told.requestId ? ` (request ${told.requestId})` : ""));
    this.status = status;
  }
}

async function ask(path) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(TOKEN)}` };
  const response = await fetch(`/api/${path}`, { headers, cache: "no-store" });
  const told = await response.json();
  if (!response.ok) throw new Refused(response.status, told);
  return told;
}

/// Makes the rows of a table those of `entries`, each by its key, in their order. `cells` are made once for a row, and filled every time.
function rows(body, entries, key, cells, fill) {
  const there = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  entries.forEach((entry, place) => {
    let row = there.get(key(entry));
    there.delete(key(entry));
    if (!row) {
      row = document.createElement("tr");
      row.dataset.key = key(entry);
      row.append(...cells(entry));
    }
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null);
    fill(row, entry);
  });
  there.forEach((row) => row.remove());
}

const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);
const times = (count) => Array.from({ length: count }, () => element("td"));

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = Number(count);
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) { value /= 1024; unit += 1; }
  return `${unit === 0 ? value : value.toFixed(2)} ${units[unit]}`;
}

const when = (time) => (time ? new Date(time).toLocaleString() : "");
const done = (region) => Number(region.bytesCopied) + Number(region.bytesSkipped);
const percent = (region) => (Number(region.bytesTotal) > 0 ? Math.floor((100 * done(region)) / Number(region.bytesTotal)) : 0);

// What a region had already was looked for, and not read.
const trusted = (region) => (region?.verification === "VERIFICATION_TRUSTED" ? " (trusted)" : "");

let page = "";
let following = "";

async function overview() {
  const [{ regions }, { images, nextPageToken }, running, recent] = await Promise.all([
    ask("regions"),
    ask(`images?page_token=${encodeURIComponent(page)}`),
    ask("synchronizations?state=RUNNING"),
    ask("synchronizations"),
  ]);
  following = nextPageToken;
  at("first").disabled = page === "";
  at("next").disabled = following === "";
  at("none").hidden = images.length > 0 || page !== "";

  // How far copies have come, by image and region, and whom to ask about them: the newest synchronization that wants it.
  const moving = new Map();
  for (const one of [...running.synchronizations, ...recent.synchronizations].reverse())
    for (const region of one.regions) moving.set(`${one.appId} ${region.regionId}`, { region, requestId: one.requestId });

  const names = regions.map((region) => region.regionId);
  const heading = ["Image", ...names].join(" ");
  const head = at("matrix").tHead;
  if (head.dataset.names !== heading) {
    head.dataset.names = heading;
    const row = element("tr");
    row.append(...["Image", ...names].map((name) => element("th", { scope: "col", textContent: name })));
    head.replaceChildren(row);
    at("matrix").tBodies[0].replaceChildren();
  }
  const cells = (image) => {
    const name = element("th", { scope: "row", textContent: image.name });
    name.append(element("small", { textContent: `${image.imageId} ${image.imageVersion} · ${bytes(image.sizeBytes)}` }));
    return [name, ...names.map(() => { const cell = element("td"); cell.append(element("span")); return cell; })];
  };
  rows(at("matrix").tBodies[0], images, (image) => image.imageId, cells, (row, image) => {
    names.forEach((name, place) => {
      const info = image.additionalRegionsInfo.find((info) => info.regionId === name);
      const copy = moving.get(`${image.imageId} ${name}`);
      const state = stateOf(info?.status);
      const cell = row.cells[place + 1];
      // What has a synchronization leads to it.
      const wanted = copy ? "A" : "SPAN";
      if (cell.firstChild.tagName !== wanted) cell.replaceChildren(element(wanted.toLowerCase()));
      const text = cell.firstChild;
      const target = `#/synchronizations/${copy?.requestId}`;
      if (copy && text.getAttribute("href") !== target) text.setAttribute("href", target);
      const progress = state === "COPYING" && copy ? ` ${percent(copy.region)} %` : "";
      const home = image.homeRegionId === name ? " (home)" : "";
      put(text, "textContent", state ? `${MARKS[state]} ${state}${trusted(info)}${progress}${home}` : "–");
      mark(text, state);
    });
  });

  const link = (one) => {
    const cell = element("th", { scope: "row" });
    cell.append(element("a", { href: `#/synchronizations/${one.requestId}`, textContent: one.requestId }));
    return [cell, ...times(4)];
  };
  rows(at("recent").tBodies[0], recent.synchronizations, (one) => one.requestId, link, (row, one) => {
    const there = one.regions.filter((region) => stateOf(region.state) === "AVAILABLE").length;
    const state = stateOf(one.state);
    [one.appId, state, `${there} of ${one.regions.length}`, when(one.createTime)]
      .forEach((text, place) => put(row.cells[place + 1], "textContent", text));
    mark(row.cells[2], state);
  });
}

async function one(requestId) {
  const { synchronization: found } = await ask(`synchronizations/${encodeURIComponent(requestId)}`);
  put(at("title"), "textContent", `${found.appId} · ${found.requestId}`);
  const facts = [
    ["State", stateOf(found.state)],
    ["Asked for by", found.principal],
    ["Asked for", when(found.createTime)],
    ["Ended", when(found.finishTime)],
    ["Trace", found.traceId],
  ].filter(([, value]) => value);
  const text = facts.flat().join("\n");
  if (at("facts").dataset.text !== text) {
    at("facts").dataset.text = text;
    at("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
    mark(at("facts").querySelector("dd"), stateOf(found.state));
  }
  const cells = (region) => {
    const row = [element("th", { scope: "row", textContent: region.regionId }), ...times(4)];
    const bar = element("progress", { max: 100 });
    bar.setAttribute("aria-label", `Progress in ${region.regionId}`);
    row[2].append(bar, element("span"));
    row[4].className = "error";
    return row;
  };
  rows(at("regions").tBodies[0], found.regions, (region) => region.regionId, cells, (row, region) => {
    const state = stateOf(region.state);
    put(row.cells[1], "textContent", `${MARKS[state] ?? ""} ${state}${trusted(region)}`);
    mark(row.cells[1], state);
    const [bar, text] = row.cells[2].children;
    put(bar, "value", state === "AVAILABLE" ? 100 : percent(region));
    const skipped = Number(region.bytesSkipped) > 0 ? `, ${bytes(region.bytesSkipped)} were there` : "";
    put(text, "textContent", `${bytes(done(region))} of ${bytes(region.bytesTotal)}${skipped}`);
    const next = region.nextAttemptTime ? `, next at ${new Date(region.nextAttemptTime).toLocaleTimeString()}` : "";
    put(row.cells[3], "textContent", `${region.attempt}${next}`);
    const warned = (region.warnings ?? []).map((warning) => `Warning: ${warning}`);
    put(row.cells[4], "textContent", [region.error?.message ?? "", ...warned].filter((text) => text).join("\n"));
  });
}

const signedIn = () => sessionStorage.getItem(TOKEN) !== null;
const subject = () => /^#\/synchronizations\/([^/]+)$/.exec(location.hash)?.[1];

function show() {
  at("enter").hidden = signedIn();
  at("leave").hidden = !signedIn();
  at("overview").hidden = !signedIn() || subject() !== undefined;
  at("one").hidden = !signedIn() || subject() === undefined;
}

let timer;
let round = 0;

async function look() {
  clearTimeout(timer);
  show();
  if (!signedIn() || document.hidden) return;
  const mine = ++round;
  const state = at("state");
  let said;
  try {
    await (subject() ? one(decodeURIComponent(subject())) : overview());
    said = "";
  } catch (error) {
    said = error instanceof Refused ? error.message : "The service does not answer; asking again";
    if (error.status === 401 || (error.status >= 400 && /^(InvalidAccessKeyId|MissingCredentials)/.test(error.message))) leave();
  }
  if (mine !== round) return;
  put(state, "textContent", said || "Live");
  put(state, "className", said ? "trouble" : "");
  if (signedIn()) timer = setTimeout(look, AGAIN);
}

function leave() {
  sessionStorage.removeItem(TOKEN);
  show();
}

at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  at("main").focus();
  look();
});
at("leave").addEventListener("click", () => {
  leave();
  put(at("state"), "textContent", "Signed out");
  at("token").focus();
});
at("first").addEventListener("click", () => { page = ""; look(); });
at("next").addEventListener("click", () => { page = following; look(); });
addEventListener("hashchange", () => {
  if (location.hash === "#main") return;
  ["title", "facts"].forEach((id) => { at(id).replaceChildren(); delete at(id).dataset.text; });
  at("regions").tBodies[0].replaceChildren();
  at("main").focus();
  look();
});
document.addEventListener("visibilitychange", look);
look();
