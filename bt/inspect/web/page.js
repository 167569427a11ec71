// SPDX-License-Identifier: GPL-2.0-or-later
// The page of `bt inspect --html`. No library, nothing loaded: the data is in the page itself.
//
// `data.blocks` is columns; a block is a number. The list of blocks is virtual: only the rows that
// can be seen exist, so that 100,000 blocks scroll as well as 100. Text reaches the document by
// textContent alone: what a guest names its symbols can be anything.
"use strict";

const $ = (id) => document.getElementById(id);
const ROW = 44;
const SHOWN_REASONS = 6;
let data, blocks, order = [], selected = -1, byAddress = new Map();

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const count = (n) => n.toLocaleString("en");
const time = (ns) => ns >= 1e9 ? (ns / 1e9).toFixed(2) + " s"
  : ns >= 1e6 ? (ns / 1e6).toFixed(2) + " ms" : ns >= 1e3 ? (ns / 1e3).toFixed(1) + " µs" : ns + " ns";
const text = (number) => data.strings[number];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

async function unpack() {
  const packed = Uint8Array.from(atob($("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  data = await new Response(stream).json();
  blocks = data.blocks;
  blocks.address.forEach((address, i) => { if (!byAddress.has(address)) byAddress.set(address, i); });
}

// Tables ------------------------------------------------------------------------------------------

// columns: [title, key, how to show it, numeric]. A click on a title sorts.
function table(node, columns, rows) {
  let key = null, down = true;
  const body = make("tbody");
  const fill = () => {
    body.replaceChildren(...rows.map((row) => make("tr", {}, ...columns.map(([, name, show, numeric]) => {
      const cell = make("td", { class: numeric ? "n" : null });
      const value = show ? show(row[name], row) : row[name];
      cell.append(value instanceof Node ? value : String(value ?? ""));
      return cell;
    }))));
  };
  const head = make("tr", {}, ...columns.map(([title, name, , numeric]) => {
    const cell = make("th", { class: numeric ? "n" : null, "data-key": name, tabindex: "0", text: title });
    const sort = () => {
      down = key === name ? !down : Boolean(numeric);
      key = name;
      rows.sort((a, b) => (a[name] < b[name] ? -1 : a[name] > b[name] ? 1 : 0) * (down ? -1 : 1));
      fill();
    };
    cell.addEventListener("click", sort);
    cell.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    return cell;
  }));
  node.replaceChildren(make("thead", {}, head), body);
  fill();
}

function blockAt(address) {
  // The last block that begins at or before an address and reaches it. Columns are sorted by it.
  const want = BigInt("0x" + address);
  let low = 0, high = blocks.address.length - 1, best = -1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (BigInt("0x" + blocks.address[middle]) <= want) { best = middle; low = middle + 1; } else high = middle - 1;
  }
  for (let i = best; i >= 0 && i > best - 40; i--) {
    if (BigInt("0x" + blocks.address[i]) + BigInt(blocks.size[i]) > want) return i;
  }
  return -1;
}

function link(address) {
  const number = blockAt(address);
  return number < 0 ? make("code", { text: address })
    : make("a", { class: "mono", href: "#block-" + number, text: address });
}

function overview() {
  const meta = data.meta;
  $("facts").textContent = `${meta.outcome}, status ${meta.status}, ${Number(meta.wall_s).toFixed(2)} s; `
    + `${count(data.counts.blocks)} blocks, ${count(data.counts.sites)} sites`
    + (meta.cmdline ? `; ${meta.cmdline}` : "");
  const top = data.reasons.length ? data.reasons[0].exits : 1;
  table($("reasons"), [["reason", "reason"], ["unit", "unit"],
    ["exits", "exits", (n) => make("span", {}, count(n),
      make("span", { class: "bar", style: `width:${Math.max(1, 100 * n / top)}%` })), true],
    ["in the VMM", "ns", (n) => n ? time(n) : "", true]], data.reasons);
  table($("symbols"), [["symbol", "symbol"], ["exits", "exits", count, true],
    ["in the VMM", "ns", time, true]], data.symbols.slice(0, 200));
  table($("hot"), [["address", "address", link], ["symbol", "symbol"], ["reason", "reason"],
    ["exits", "exits", count, true], ["in the VMM", "ns", time, true]], data.hot);
}

// The list of blocks ------------------------------------------------------------------------------

function matches(number, words) {
  const symbol = text(blocks.symbol[number]).toLowerCase();
  for (const word of words) {
    if (symbol.includes(word)) continue;
    const address = word.replace(/^0x/, "");
    if (/^[0-9a-f]+$/.test(address) && blocks.address[number].includes(address)) continue;
    if (blocks.texts[number].some((t) => text(t).includes(word))) continue;
    return false;
  }
  return true;
}

const KINDS = {
  all: () => true, changed: (i) => blocks.state[i] !== 0, trap: (i) => blocks.state[i] & 1,
  stub: (i) => blocks.state[i] & 2, kernel: (i) => blocks.kernel[i], user: (i) => !blocks.kernel[i],
};

function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = KINDS[$("which").value], sort = $("sort").value;
  order = [];
  for (let i = 0; i < blocks.address.length; i++) {
    if (kind(i) && (!words.length || matches(i, words))) order.push(i);
  }
  if (sort !== "address") {
    const column = blocks[sort], up = sort === "first" ? 1 : -1;
    order.sort((a, b) => (column[a] - column[b]) * up || a - b);
  }
  $("found").textContent = `${count(order.length)} of ${count(blocks.address.length)} blocks`;
  $("space").style.height = order.length * ROW + "px";
  $("rows").scrollTop = Math.max(0, order.indexOf(selected) * ROW - 2 * ROW);
  draw();
}

let drawn = new Map();  // block -> its row: what stays in sight stays the same element
function draw() {
  const rows = $("rows"), first = Math.max(0, Math.floor(rows.scrollTop / ROW) - 4);
  const last = Math.min(order.length, first + Math.ceil(rows.clientHeight / ROW) + 8);
  const now = new Map();
  for (let at = first; at < last; at++) {
    const i = order[at], node = drawn.get(i) || row(i);
    node.style.top = at * ROW + "px";
    node.setAttribute("aria-selected", i === selected);
    if (!drawn.has(i)) $("space").append(node);
    now.set(i, node);
  }
  for (const [i, node] of drawn) if (!now.has(i)) node.remove();
  drawn = now;
}

function row(i) {
  return make("div", { class: "row", role: "option", id: "row-" + i, "data-block": i },
    make("span", { class: "name", text: text(blocks.symbol[i]) || blocks.address[i] }),
    make("span", { class: "what" }, make("span", { text: blocks.address[i] }),
      blocks.state[i] & 1 ? make("span", { class: "dot trap", text: "trap" }) : null,
      blocks.state[i] & 2 ? make("span", { class: "dot stub", text: "stub" }) : null,
      blocks.kernel[i] ? null : make("span", { text: "user" }),
      blocks.exits[i] ? make("b", { text: count(blocks.exits[i]) + " exits" }) : null));
}

function choose(number, scroll = true) {
  selected = number;
  show(number);
  const at = order.indexOf(number), rows = $("rows");
  if (scroll && at >= 0) {
    if (at * ROW < rows.scrollTop) rows.scrollTop = at * ROW;
    else if ((at + 1) * ROW > rows.scrollTop + rows.clientHeight) {
      rows.scrollTop = (at + 1) * ROW - rows.clientHeight;
    }
  }
  draw();
  rows.setAttribute("aria-activedescendant", "row-" + number);
  history.replaceState(null, "", "#block-" + number);
}

function move(step) {
  if (!order.length) return;
  const at = order.indexOf(selected);
  choose(order[Math.min(order.length - 1, Math.max(0, at < 0 ? 0 : at + step))]);
}

// One block, both sides ---------------------------------------------------------------------------

function show(i) {
  const node = $("block");
  const changes = new Map((data.changes[i] || []).map((change) => [change[0], change]));
  const body = make("tbody");
  let address = BigInt("0x" + blocks.address[i]), at = 0;
  const why = [];
  blocks.texts[i].forEach((t, line) => {
    const length = blocks.lengths[i][line];
    const [, now, nowText, state, reason, exits, ns] = changes.get(line) || [line, "", 0, "", 0, 0, 0];
    body.append(make("tr", { class: state ? "changed" : null },
      make("td", { class: "old", text: address.toString(16) }),
      make("td", { class: "old", text: blocks.code[i].slice(2 * at, 2 * (at + length)) }),
      make("td", { text: text(t) }),
      make("td", { class: state || null, text: state ? now : "" }),
      make("td", { class: state || null, text: state ? text(nowText) : "" }),
      make("td", { class: "n", text: exits ? count(exits) + "×" : "" }),
      make("td", { class: "n", text: exits ? time(ns) : "" })));
    if (state === "trap" || state === "stub") {
      why.push(make("li", {}, make("code", { text: address.toString(16) }), ` ${state}: ${text(reason)}`));
    }
    address += BigInt(length);
    at += length;
  });
  const facts = `${blocks.bits[i]}-bit ${blocks.kernel[i] ? "kernel" : "user"} code, ${blocks.size[i]} bytes, `
    + `first run at ${time(blocks.first[i] * 1000)}, translated ${blocks.times[i]}×`
    + (blocks.dropped[i] ? `, dropped when its page was written ${blocks.dropped[i]}×` : "")
    + (blocks.exits[i] ? `; ${count(blocks.exits[i])} exits in ${time(blocks.ns[i])}` : "");
  const head = make("tr", {}, ...["address", "guest's bytes", "guest's instruction", "bytes that run",
    "what runs", "exits", "in the VMM"].map((title, n) => make("th", { class: n > 4 ? "n" : null, text: title })));
  const parts = [
    make("h2", {}, (text(blocks.symbol[i]) || "block") + " ", make("code", { text: blocks.address[i] })),
    make("p", { class: "note", text: facts }),
    make("div", { class: "scroll" }, make("table", { class: "code" }, make("thead", {}, head), body)),
    why.length ? make("ul", { class: "why" }, ...why) : null];
  for (const [site, code] of data.stubs[i] || []) {
    parts.push(make("div", { class: "stubcode" }, make("h2", {}, "The stub of ", make("code", { text: site })),
      make("div", { class: "scroll" }, make("table", { class: "code" }, make("tbody", {},
        ...code.map(([where, raw, t]) => make("tr", {}, make("td", { class: "old", text: where }),
          make("td", { class: "old", text: raw }), make("td", { text: text(t) }))))))));
  }
  node.replaceChildren(...parts.filter(Boolean));
  node.scrollTop = 0;
}

// Timeline ----------------------------------------------------------------------------------------

let chart;
function timeline() {
  const { ns, series } = data.timeline;
  const names = Object.keys(series);
  const total = Object.fromEntries(names.map((name) => [name, series[name].reduce((a, b) => a + b, 0)]));
  names.sort((a, b) => total[b] - total[a]);
  const layers = names.slice(0, SHOWN_REASONS).map((name, n) => ({ name, values: series[name], colour: `--s${n}` }));
  const rest = names.slice(SHOWN_REASONS);
  if (rest.length) {
    layers.push({ name: "all other", colour: "--s6",
      values: ns.map((_, i) => rest.reduce((sum, name) => sum + series[name][i], 0)) });
  }
  chart = { ns, layers, high: Math.max(1, ...ns.map((_, i) => layers.reduce((s, l) => s + l.values[i], 0))), at: -1 };
  $("legend").replaceChildren(...layers.map((layer) => make("span", { class: "key" },
    make("i", { style: `background:var(${layer.colour})` }), layer.name)));
  table($("events"), [["time", "ns", time, true], ["what", "what"], ["address", "address", link],
    ["symbol", "symbol"]], data.events.map(([when, what, address]) => {
    const number = blockAt(address);
    return { ns: when, what, address, symbol: number < 0 ? "" : text(blocks.symbol[number]) };
  }));
}

function canvas(node, height) {
  const ratio = devicePixelRatio || 1, width = node.clientWidth;
  node.width = width * ratio;
  node.height = height * ratio;
  node.style.height = height + "px";
  const context = node.getContext("2d");
  context.scale(ratio, ratio);
  return [context, width];
}

function drawChart() {
  if (!chart || $("time").hidden || !chart.ns.length) return;
  const height = 300, left = 60, bottom = 26, top = 10, [c, width] = canvas($("chart"), height);
  const end = Math.max(1, chart.ns[chart.ns.length - 1]);
  const x = (ns) => left + (width - left - 10) * ns / end;
  const y = (value) => top + (height - top - bottom) * (1 - value / chart.high);
  c.font = "12px system-ui, sans-serif";
  c.textBaseline = "middle";
  for (let i = 0; i <= 4; i++) {
    const value = chart.high * i / 4;
    c.fillStyle = colour("--line");
    c.fillRect(left, y(value), width - left - 10, 1);
    c.fillStyle = colour("--soft");
    c.textAlign = "right";
    c.fillText(count(Math.round(value)), left - 6, y(value));
    c.textAlign = i === 0 ? "left" : i === 4 ? "right" : "center";
    c.fillText(time(Math.round(end * i / 4)), x(end * i / 4), height - 10);
  }
  const floor = chart.ns.map(() => 0);
  for (const layer of chart.layers) {
    c.fillStyle = colour(layer.colour);
    chart.ns.forEach((ns, i) => {
      const from = x(i ? chart.ns[i - 1] : 0), low = floor[i];
      floor[i] += layer.values[i];
      if (layer.values[i]) c.fillRect(from, y(floor[i]), Math.max(1, x(ns) - from - 0.5), y(low) - y(floor[i]));
    });
  }
  if (chart.at >= 0) {
    c.fillStyle = colour("--ink");
    c.fillRect(x(chart.ns[chart.at]), top, 1, height - top - bottom);
    $("moment").textContent = `to ${time(chart.ns[chart.at])}: ` + chart.layers
      .filter((layer) => layer.values[chart.at])
      .map((layer) => `${layer.name} ${count(layer.values[chart.at])}`).join(", ");
  }
  chart.time = (px) => (px - left) / (width - left - 10) * end;
}

// Page map ----------------------------------------------------------------------------------------

const CELL = 9;
const PAGE_KINDS = [["code, never written again", "--s0"], ["written, then code again", "--s4"],
  ["written last: data now", "--s6"], ["written more than 10 times", "--s1"]];
let map = { columns: 1, at: -1 };
const pageKind = ([, code, written]) => written > 10 ? 3 : written === 0 ? 0 : code > written ? 1 : 2;

function drawMap() {
  if ($("pages").hidden) return;
  const node = $("map"), columns = Math.max(1, Math.floor((node.clientWidth - 10) / CELL));
  const [c] = canvas(node, Math.ceil(data.pages.length / columns) * CELL + 10);
  map.columns = columns;
  data.pages.forEach((page, i) => {
    c.fillStyle = colour(PAGE_KINDS[pageKind(page)][1]);
    c.fillRect(5 + (i % columns) * CELL, 5 + Math.floor(i / columns) * CELL, CELL - 1, CELL - 1);
    if (i === map.at) {
      c.strokeStyle = colour("--ink");
      c.lineWidth = 2;
      c.strokeRect(5 + (i % columns) * CELL, 5 + Math.floor(i / columns) * CELL, CELL - 1, CELL - 1);
    }
  });
  const page = data.pages[map.at];
  $("page").textContent = page ? `page ${(page[0] * 4096).toString(16)}: became code ${page[1]}×, `
    + `was written ${page[2]}×, last change at ${time(page[3])}` : "";
  $("pagelegend").replaceChildren(...PAGE_KINDS.map(([name, tone]) => make("span", { class: "key" },
    make("i", { style: `background:var(${tone})` }), name)));
}

// Views, keys -------------------------------------------------------------------------------------

const VIEWS = [...document.querySelectorAll("main > section")].map((section) => section.id);
function route() {
  const hash = location.hash.slice(1) || "overview";
  const block = /^block-(\d+)$/.exec(hash);
  const view = block ? "blocks" : VIEWS.includes(hash) ? hash : "overview";
  for (const id of VIEWS) {
    $(id).hidden = id !== view;
    const tab = document.querySelector(`nav a[href="#${id}"]`);
    tab.setAttribute("aria-selected", id === view);
  }
  if (view === "blocks") {
    const number = block ? Number(block[1]) : selected;
    if (block && number < blocks.address.length) {
      if (!order.includes(number)) { $("search").value = ""; $("which").value = "all"; selected = number; search(); }
      choose(number);
    } else draw();
  }
  scrollTo(0, 0);
  drawChart();
  drawMap();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing = /^(INPUT|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape" && typing) { event.target.blur(); $("rows").focus(); return; }
  if (typing) {
    if (event.target === $("search") && (event.key === "ArrowDown" || event.key === "Enter")) {
      event.preventDefault();
      $("rows").focus();
      move(0);
    }
    return;
  }
  const here = !$("blocks").hidden, far = Math.floor($("rows").clientHeight / ROW) || 10;
  const steps = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: far, PageUp: -far, Home: -1e9, End: 1e9 };
  if (event.key === "/") { event.preventDefault(); location.hash = "#blocks"; route(); $("search").focus(); }
  else if (event.key === "t") scheme();
  else if (event.key === "?") $("help").showModal();
  else if (/^[1-9]$/.test(event.key) && VIEWS[event.key - 1]) location.hash = "#" + VIEWS[event.key - 1];
  else if (event.key === "s" && here) {
    const sort = $("sort");
    sort.selectedIndex = (sort.selectedIndex + 1) % sort.length;
    search();
  } else if (here && event.key in steps) { event.preventDefault(); move(steps[event.key]); }
  else if (!$("time").hidden && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    chart.at = Math.min(chart.ns.length - 1, Math.max(0, chart.at + (event.key === "ArrowRight" ? 1 : -1)));
    drawChart();
  } else if (!$("pages").hidden && /^Arrow/.test(event.key)) {
    event.preventDefault();
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -map.columns, ArrowDown: map.columns }[event.key];
    map.at = Math.min(data.pages.length - 1, Math.max(0, map.at + step));
    drawMap();
  }
}

function scheme() {
  const root = document.documentElement;
  root.dataset.scheme = root.dataset.scheme === "dark" ? "light" : "dark";
  drawChart();
  drawMap();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => { document.documentElement.dataset.scheme = dark.matches ? "dark" : "light"; drawAll(); };
const drawAll = () => { if (data) { drawChart(); drawMap(); if (!$("blocks").hidden) draw(); } };
dark.addEventListener("change", follow);
follow();

unpack().then(() => {
  overview();
  search();
  timeline();
  $("wait").hidden = true;
  let waiting = 0;
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 120); });
  $("find").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["sort", "which"]) $(id).addEventListener("change", search);
  $("rows").addEventListener("scroll", draw);
  $("rows").addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) choose(Number(row.dataset.block), false);
  });
  $("scheme").addEventListener("click", scheme);
  $("keys").addEventListener("click", () => $("help").showModal());
  $("chart").addEventListener("pointermove", (event) => {
    if (!chart.time) return;
    const ns = chart.time(event.offsetX);
    chart.at = Math.max(0, chart.ns.findIndex((end) => end >= ns));
    drawChart();
  });
  $("map").addEventListener("pointermove", (event) => {
    const column = Math.floor((event.offsetX - 5) / CELL);
    const at = Math.floor((event.offsetY - 5) / CELL) * map.columns + column;
    map.at = column >= 0 && column < map.columns && at < data.pages.length ? at : -1;
    drawMap();
  });
  document.addEventListener("keydown", keys);
  addEventListener("hashchange", route);
  addEventListener("resize", drawAll);
  route();
  document.body.dataset.ready = "1";
}, (error) => { $("wait").textContent = "This page's data cannot be read: " + error.message; });
