// Live pages: a run's curves are asked for again while they change; the first page of the list reloads its table.
const place = document.getElementById("curves");
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function short(value) {
  const size = Math.abs(value);
  return size >= 1e6 ? +(value / 1e6).toPrecision(3) + "M" : size >= 1e4 ? +(value / 1e3).toPrecision(3) + "k" : String(+value.toPrecision(3));
}

function ticks(low, high) {
  if (!(high > low)) return [low];
  const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999), found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

function chart(curve) {
  const W = 430, H = 230, L = 56, R = 14, T = 14, B = 40;
  const known = curve.step.map((_, i) => i).filter(i => curve.mean[i] !== null);
  const ys = known.flatMap(i => [curve.mean[i], curve.low?.[i] ?? curve.mean[i], curve.high?.[i] ?? curve.mean[i]]);
  const xs = known.map(i => curve.step[i]);
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (x1 === x0) x1 = x0 + 1;
  const pad = (y1 - y0) * 0.06 || Math.abs(y0) * 0.5 || 1;
  [y0, y1] = [y0 - pad, y1 + pad];
  const X = v => L + (v - x0) / (x1 - x0) * (W - L - R), Y = v => H - B - (v - y0) / (y1 - y0) * (H - T - B);
  const svg = element("svg", {class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": curve.name});
  for (const v of ticks(y0, y1)) svg.append(
    element("line", {class: "grid", x1: L, x2: W - R, y1: Y(v), y2: Y(v)}),
    element("text", {class: "tick", x: L - 8, y: Y(v) + 4, "text-anchor": "end"}, short(v)));
  for (const v of ticks(x0, x1)) svg.append(element("text", {class: "tick", x: X(v), y: H - B + 18, "text-anchor": "middle"}, short(v)));
  svg.append(element("line", {class: "axis", x1: L, x2: W - R, y1: H - B, y2: H - B}),
    element("text", {class: "label", x: W - R, y: H - 4, "text-anchor": "end"}, curve.x_label));
  const at = (values, i) => `${X(curve.step[i]).toFixed(1)},${Y(values[i]).toFixed(1)}`;
  if (curve.low) {
    const band = known.filter(i => curve.low[i] !== null && curve.high[i] !== null);
    svg.append(element("polygon", {class: "band c0", points: [...band.map(i => at(curve.high, i)), ...band.reverse().map(i => at(curve.low, i))].join(" ")}));
  }
  svg.append(element("polyline", {class: "line c0", points: known.map(i => at(curve.mean, i)).join(" ")}));
  return svg;
}

function draw(curves) {
  const figures = curves.filter(c => c.mean.some(v => v !== null)).map(curve => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption"), name = document.createElement("b");
    name.textContent = curve.name;
    caption.append(name);
    figure.append(caption, chart(curve));
    return figure;
  });
  place.replaceChildren(...figures);
  const last = Math.max(...curves.map(c => c.step.at(-1) ?? 0)), step = document.getElementById("step");
  if (step && last > 0) step.textContent = Math.round(last).toLocaleString("en");
}

async function follow() {
  let tag = "", waited = 2000;
  for (;;) {
    try {
      const answer = await fetch(place.dataset.curves, {headers: tag ? {"if-none-match": tag} : {}, cache: "no-store"});
      if (answer.status === 200) {
        document.getElementById("live").hidden = !tag;
        tag = answer.headers.get("etag");
        draw(await answer.json());
        waited = 2000;
      } else {
        waited = Math.min(waited * 1.5, 30000);
        document.getElementById("live").hidden = waited > 10000 || document.getElementById("live").hidden;
      }
    } catch { waited = 10000; }
    await new Promise(done => setTimeout(done, waited));
  }
}
if (place) follow();

const list = document.querySelector("[data-refresh=yes]");
if (list) setInterval(async () => {
  if (document.hidden) return;
  const answer = await fetch(location.href, {cache: "no-store"}).catch(() => null);
  if (!answer?.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-refresh]");
  if (fresh) list.replaceChildren(...fresh.childNodes);
}, 5000);
