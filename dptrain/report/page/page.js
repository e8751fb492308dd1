"use strict";

// The values of the curves under the pointer, or at the point that the arrow keys have chosen.
function watch(plot) {
  const data = JSON.parse(plot.querySelector("script").textContent);
  const [first, last, low, high] = data.range;
  const [scale, digits, unit] = data.axis;
  const main = data.curves.find((curve) => !curve.back) || data.curves[0];
  let chosen = main.x.length - 1;
  let shown = [];

  function add(name, className) {
    const node = document.createElement(name);
    node.className = className;
    plot.append(node);
    shown.push(node);
    return node;
  }

  function hide() {
    shown.forEach((node) => node.remove());
    shown = [];
  }

  function nearest(curve, x) {
    let best = 0;
    curve.x.forEach((value, index) => {
      if (Math.abs(value - x) < Math.abs(curve.x[best] - x)) best = index;
    });
    return best;
  }

  function text(value) {
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    return (value * scale).toLocaleString("en-US", options) + unit;
  }

  function place(x, step) {
    const rounded = Number(x.toFixed(2)).toLocaleString("en-US");
    return data.unit === "epoch" ? `epoch ${rounded}, step ${step.toLocaleString("en-US")}` : `step ${rounded}`;
  }

  function show(x) {
    hide();
    chosen = nearest(main, x);
    const left = (100 * (main.x[chosen] - first)) / (last - first);
    add("div", "cursor").style.left = `${left}%`;
    const lines = [place(main.x[chosen], main.steps[chosen])];
    const tip = add("div", "tip");
    tip.append(Object.assign(document.createElement("b"), { textContent: lines[0] }));
    for (const curve of data.curves) {
      const index = nearest(curve, curve === main || curve.back ? x : main.x[chosen]);
      const share = (high - curve.y[index]) / (high - low);
      const same = curve.steps[index] === main.steps[chosen];
      const where = same ? "" : `, step ${curve.steps[index].toLocaleString("en-US")}`;
      lines.push(`${curve.name}${where}: ${text(curve.y[index])}`);
      const row = document.createElement("span");
      const label = Object.assign(document.createElement("i"), { textContent: curve.name + where });
      row.append(label, text(curve.y[index]));
      tip.append(row);
      if (share >= 0 && share <= 1) {
        const mark = add("div", `mark ${curve.style}`);
        mark.style.left = `${(100 * (curve.x[index] - first)) / (last - first)}%`;
        mark.style.top = `${100 * share}%`;
      }
    }
    // The box stays inside the plot, beside the line.
    const room = plot.clientWidth - tip.offsetWidth;
    const beside = (left / 100) * plot.clientWidth + (left > 50 ? -tip.offsetWidth - 12 : 12);
    tip.style.left = `${Math.max(-40, Math.min(room, beside))}px`;
    plot.setAttribute("aria-valuenow", chosen);
    plot.setAttribute("aria-valuetext", lines.join("; "));
  }

  function follow(event) {
    const box = plot.getBoundingClientRect();
    show(first + ((event.clientX - box.left) / box.width) * (last - first));
  }

  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("focus", () => {
    if (plot.matches(":focus-visible")) show(main.x[chosen]);
  });
  plot.addEventListener("keydown", (event) => {
    const end = main.x.length - 1;
    const moves = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, ArrowDown: chosen - 1, ArrowUp: chosen + 1, Home: 0, End: end };
    if (event.key === "Escape") hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(main.x[Math.max(0, Math.min(end, moves[event.key]))]);
  });
}

document.querySelectorAll(".plot").forEach(watch);

// Print shows everything.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
});
