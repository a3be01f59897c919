// Keeps the page as it should be now: asks every two seconds, and patches what changed into the elements that are
// there, so that focus, open menus and typed text stay. All text is set as text; HTML comes from the server alone,
// as documents that the browser parsed, in which no script runs.
"use strict";
(() => {
  const EVERY_MS = 2000, HIDDEN_MS = 20000, LONGEST_MS = 30000, PATIENCE_MS = 10000;
  const SAMPLES = 60, PARTS_AT_ONCE = 20, NEWS_AT_ONCE = 3;
  const TROUBLE = ["failed", "probing", "manual", "drained", "spare", "up"];
  const SVG = "http://www.w3.org/2000/svg";

  const $ = (id) => document.getElementById(id);
  const board = $("board"), dialog = $("dialog");
  const parts = new Map(); // by key: what is patched of each part
  const traffic = new Map(); // by part and host: samples of requests and errors, which outlive their row
  const around = document.title.split("Upstreams")[1] || ""; // of an application that has the page in its own
  let timer = 0, failures = 0, paused = false, asking = false;

  // ── rows ──────────────────────────────────────────────────────────────────────────────────

  const watched = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const row = rowOf.get(entry.target);
      if (row) {
        row.seen = entry.isIntersecting;
        if (row.seen) draw(row);
      }
    }
  }, { rootMargin: "200px" });
  const rowOf = new WeakMap();

  function take(element) {
    const part = {
      element,
      made: element.dataset.made,
      texts: [...element.querySelectorAll("[data-t]")].map((node) => ({ node, shown: node.textContent })),
      rows: element.matches(".pool") ? [...element.querySelectorAll("tbody > tr")].map((tr) => takeRow(tr, element)) : [],
    };
    parts.set(element.dataset.part, part);
    return part;
  }

  function takeRow(tr, element) {
    const id = tr.querySelector(".id").textContent;
    const key = `${element.dataset.part}\n${id}`;
    const cell = tr.querySelector(".traffic");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${SAMPLES - 1} 20`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const [requests, errors] = ["requests", "errors"].map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      return svg.appendChild(path);
    });
    const rate = document.createElement("span");
    cell.replaceChildren(svg, rate);
    if (!traffic.has(key)) traffic.set(key, []);
    const row = {
      tr, id, requests, errors, rate, samples: traffic.get(key), seen: false,
      pool: element.querySelector("h3").textContent,
      bar: tr.querySelector(".bar rect"),
      text: `${element.querySelector("h3").textContent} ${tr.querySelector(".host").textContent}`.toLowerCase(),
      state: tr.dataset.state, numbers: null,
    };
    rowOf.set(tr, row);
    watched.observe(tr);
    return row;
  }

  function patch(part, now) {
    part.texts.forEach((text, number) => {
      if (text.shown !== now.texts[number]) text.node.textContent = text.shown = now.texts[number];
    });
  }

  function patchRow(row, [state, share, requests, errors, inFlight, p90], at) {
    if (!row.numbers || row.numbers.share !== share) row.bar.setAttribute("width", `${share * 100}%`);
    row.numbers = { state: TROUBLE.indexOf(state), share, requests, errors, in_flight: inFlight, p90 };
    row.samples.push({ at, requests, errors });
    if (row.samples.length > SAMPLES + 1) row.samples.shift();
    if (row.seen) draw(row);
    if (row.state === state) return false;
    row.state = row.tr.dataset.state = state;
    return true;
  }

  function draw(row) {
    const rates = [];
    for (let i = 1; i < row.samples.length; i++) {
      const before = row.samples[i - 1], after = row.samples[i];
      const seconds = Math.max(0.001, after.at - before.at);
      const errors = Math.max(0, after.errors - before.errors) / seconds;
      rates.push([Math.max(errors, (after.requests - before.requests) / seconds), errors]);
    }
    if (rates.length < 2) return;
    const most = Math.max(1, ...rates.map(([all]) => all));
    const start = SAMPLES - rates.length;
    const any = rates.some(([all]) => all);
    const area = (which) => {
      const points = rates.map((rate, i) => `${start + i},${(20 - 18 * rate[which] / most).toFixed(1)}`);
      return `M${start},20L${points.join("L")}L${SAMPLES - 1},20Z`;
    };
    row.requests.setAttribute("d", any ? area(0) : "");
    row.errors.setAttribute("d", rates.some(([, errors]) => errors) ? area(1) : "");
    const now = rates[rates.length - 1][0];
    const text = now ? `${now < 10 ? now.toFixed(1) : Math.round(now)}/s` : "";
    if (row.rate.textContent !== text) row.rate.textContent = text;
  }

  // ── parts ─────────────────────────────────────────────────────────────────────────────────

  function load(url) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("GET", url);
      request.responseType = "document";
      request.timeout = PATIENCE_MS;
      request.onload = () => (request.status === 200 && request.response
        ? resolve(request.response)
        : reject(new Refused(request.status, request.response?.querySelector("main p")?.textContent)));
      request.onerror = request.ontimeout = () => reject(new Error("no answer"));
      request.send();
    });
  }

  class Refused extends Error {
    constructor(status, text) {
      super(text || `the server answered ${status}`);
      this.status = status;
    }
  }

  async function renew(update) {
    const wanted = new Set(update.parts.map((part) => part.key));
    for (const [key, part] of parts) {
      if (!wanted.has(key)) {
        part.element.remove();
        parts.delete(key);
      }
    }
    const stale = update.parts.filter((part) => parts.get(part.key)?.made !== part.made).map((part) => part.key);
    if (stale.length) {
      const query = stale.length > PARTS_AT_ONCE ? "" : stale.map((key) => `part=${encodeURIComponent(key)}`).join("&");
      const fresh = await load(`./?${query}`);
      for (const element of fresh.querySelectorAll("[data-part]")) {
        if (stale.includes(element.dataset.part)) replace(document.adoptNode(element));
      }
    }
    arrange(update);
    return stale.length > 0;
  }

  function replace(element) {
    const old = parts.get(element.dataset.part)?.element;
    if (old) {
      element.open = old.open;
      const back = remember(old);
      old.replaceWith(element);
      back(element);
    }
    take(element);
  }

  // Open menus and the focus, to be found again in what takes the place of their part.
  function remember(old) {
    const place = (node) => [node.closest("tr")?.querySelector(".id")?.textContent, node.className, node.localName];
    const same = (a, b) => a.every((each, i) => each === b[i]);
    const menus = [...old.querySelectorAll(".menu[open]")].map(place);
    const focus = old.contains(document.activeElement) ? place(document.activeElement) : null;
    return (element) => {
      for (const node of element.querySelectorAll(".menu, summary, a")) {
        if (menus.some((menu) => same(menu, place(node)))) node.open = true;
        if (focus && same(focus, place(node))) node.focus({ preventScroll: true });
      }
    };
  }

  function arrange(update) {
    let before = null;
    for (const { key } of update.parts) {
      const element = parts.get(key)?.element;
      if (!element) continue;
      if (key.startsWith("upstream/")) before = null;
      if (before && before.nextElementSibling !== element) before.after(element);
      before = element;
    }
  }

  // ── updates ───────────────────────────────────────────────────────────────────────────────

  async function show(update) {
    const renewed = await renew(update);
    const news = [];
    for (const now of update.parts) {
      const part = parts.get(now.key);
      if (!part || part.made !== now.made) continue; // changed again meanwhile: next time
      patch(part, now);
      part.rows.forEach((row, number) => {
        if (patchRow(row, now.rows[number], update.at)) {
          const words = [".word", ".detail"].map((name) => row.tr.querySelector(name).textContent);
          news.push(`Host ${row.id} of pool ${row.pool}: ${words.filter(Boolean).join(", ")}.`);
        }
      });
    }
    $("live-at").textContent = update.clock;
    document.title = update.title + around;
    if (news.length) tell(news.length > NEWS_AT_ONCE ? `${news.length} hosts changed their state.` : news.join(" "));
    if (news.length || renewed || $("sort").value) order();
    if (news.length || renewed) filter();
  }

  const tell = (text) => { $("news").textContent = text; };

  async function ask() {
    clearTimeout(timer);
    if (asking) return;
    asking = true;
    try {
      const answer = await fetch("status.json?for=page", {
        headers: { Accept: "application/json" }, signal: AbortSignal.timeout(PATIENCE_MS),
      });
      if (!answer.ok) throw new Refused(answer.status, (await answer.json().catch(() => ({}))).error);
      await show(await answer.json());
      if (failures) tell("The page is live again.");
      failures = 0;
      say(...(paused ? ["paused", "Paused · as of "] : ["live", "Live · "]));
    } catch (error) {
      fail(error);
    } finally {
      asking = false;
      next();
    }
  }

  function fail(error) {
    const why = error.status === 401 ? "you are signed out, load the page again"
      : error instanceof Refused ? error.message : "no answer from the server";
    if (!failures++) tell(`The page is not updated any more: ${why}`);
    say("stale", `Not updated: ${why.replace(/\.$/, "")}; tried again every ${pause() / 1000} s · as of `);
  }

  function say(state, text) {
    $("live").dataset.state = state;
    if ($("live-word").textContent !== text) $("live-word").textContent = text;
  }

  const pause = () => Math.min(LONGEST_MS, (document.hidden ? HIDDEN_MS : EVERY_MS) * 2 ** Math.min(failures, 5));

  function next() {
    clearTimeout(timer);
    if (!paused) timer = setTimeout(ask, pause());
  }

  // ── find, sort, fold ──────────────────────────────────────────────────────────────────────

  function filter() {
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean), state = $("show").value;
    let all = 0, found = 0;
    for (const part of parts.values()) {
      let left = 0;
      for (const row of part.rows) {
        const fits = !state || row.state === state || (state === "trouble" && row.state !== "up")
          || (state === "failed" && row.state === "probing");
        row.tr.hidden = !(fits && words.every((word) => row.text.includes(word)));
        left += !row.tr.hidden;
      }
      all += part.rows.length;
      found += left;
      if (part.element.matches(".pool")) part.element.hidden = (words.length > 0 || state !== "") && !left;
    }
    $("found").textContent = words.length || state ? `${found} of ${all} hosts` : "";
  }

  function order() {
    const by = $("sort").value;
    for (const { rows } of parts.values()) {
      const body = rows[0]?.tr.parentNode;
      if (!body || body.contains(document.activeElement) || body.querySelector(".menu[open]")) continue;
      const sorted = [...rows];
      if (by && rows.every((row) => row.numbers)) {
        const sign = by === "state" ? 1 : -1;
        sorted.sort((a, b) => sign * (a.numbers[by] - b.numbers[by]));
      }
      if (sorted.some((row, number) => body.rows[number] !== row.tr)) body.append(...sorted.map((row) => row.tr));
    }
  }

  function fold() {
    const pools = [...board.querySelectorAll(".pool")];
    const open = !pools.some((pool) => pool.open);
    for (const pool of pools) pool.open = open;
    sayFold();
  }

  function sayFold() {
    $("fold").textContent = board.querySelector(".pool[open]") ? "Collapse all" : "Expand all";
  }

  // ── menus and questions ───────────────────────────────────────────────────────────────────

  function closeMenus(except) {
    for (const menu of document.querySelectorAll(".menu[open]")) if (menu !== except) menu.open = false;
  }

  async function question(link) {
    const menu = link.closest(".menu");
    try {
      const form = document.adoptNode((await load(link.href)).querySelector("form.confirm"));
      dialog.replaceChildren(form);
      menu.open = false;
      dialog.returnTo = menu.querySelector("summary");
      dialog.showModal();
      (form.querySelector("input[type=text]") || form.querySelector("button")).focus();
    } catch (error) {
      if (error instanceof Refused) tell(error.message);
      location.assign(link.href); // says what is wrong
    }
  }

  async function send(form) {
    const button = form.querySelector("button");
    button.disabled = true;
    try {
      const answer = await fetch(form.action, {
        method: "POST", headers: { Accept: "application/json" }, body: new URLSearchParams(new FormData(form)),
      });
      const said = await answer.json().catch(() => ({}));
      if (!answer.ok) throw new Refused(answer.status, said.error);
      dialog.close();
      await ask();
      tell(said.done);
    } catch (error) {
      complain(form, error instanceof Refused ? error.message : "The server did not answer; look before you try again.");
    } finally {
      button.disabled = false;
    }
  }

  function complain(form, text) {
    let problem = form.querySelector(".problem");
    if (!problem) {
      problem = document.createElement("p");
      problem.className = "problem";
      problem.setAttribute("role", "alert");
      form.querySelector(".consequence").after(problem);
    }
    problem.textContent = text;
  }

  // ── begin ─────────────────────────────────────────────────────────────────────────────────

  document.addEventListener("toggle", (event) => {
    if (event.target.matches?.(".menu") && event.target.open) closeMenus(event.target);
    if (event.target.matches?.(".pool")) sayFold();
  }, true);
  document.addEventListener("click", (event) => {
    closeMenus(event.target.closest(".menu"));
    const link = event.target.closest(".menu a");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      question(link);
    }
    if (event.target.closest("#cancel")) {
      event.preventDefault();
      dialog.close();
    }
  });
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && document.activeElement.closest?.(".menu[open]");
    if (menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  dialog.addEventListener("submit", (event) => {
    event.preventDefault();
    send(event.target);
  });
  dialog.addEventListener("close", () => dialog.returnTo?.focus());
  document.addEventListener("visibilitychange", () => (document.hidden || paused ? next() : ask()));
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").textContent = paused ? "Go on" : "Pause";
    if (paused) {
      clearTimeout(timer);
      say("paused", "Paused · as of ");
    } else ask();
  });
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  $("find").addEventListener("input", filter);
  $("show").addEventListener("change", filter);
  $("sort").addEventListener("change", order);
  $("fold").addEventListener("click", fold);

  for (const element of board.querySelectorAll("[data-part]")) take(element);
  $("tools").hidden = $("pause").hidden = false;
  filter();
  ask();
})();
