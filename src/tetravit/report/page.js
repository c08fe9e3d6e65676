// Follow the pointer over a chart: a line, and the values of every curve in the legend.
for (const chart of document.querySelectorAll("svg.chart")) {
  const series = JSON.parse(chart.dataset.series);
  const legend = chart.parentElement.querySelector(".legend");
  const rest = legend.innerHTML;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  chart.addEventListener("pointermove", (event) => {
    const box = chart.viewBox.baseVal;
    const x = ((event.clientX - chart.getBoundingClientRect().left) / chart.clientWidth) * box.width;
    const nearest = series.map((s) => s.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)));
    const at = nearest.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    for (const [name, value] of [["x1", at[0]], ["x2", at[0]], ["y1", 12], ["y2", box.height - 40]]) {
      cursor.setAttribute(name, value);
    }
    chart.append(cursor);
    legend.replaceChildren(
      ...series.map((s, i) => {
        const item = document.createElement("span");
        item.innerHTML = `<i class="key tone${s.tone}"></i>`;
        const value = document.createElement("b");
        value.textContent = nearest[i][3];
        item.append(`${s.name} `, value, ` at ${chart.dataset.over} ${Math.round(nearest[i][2]).toLocaleString()}`);
        return item;
      }),
    );
  });
  chart.addEventListener("pointerleave", () => {
    cursor.remove();
    legend.innerHTML = rest;
  });
}
for (const button of document.querySelectorAll(".command button")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("pre").textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1200);
  });
}
