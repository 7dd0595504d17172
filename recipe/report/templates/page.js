// The page works without this: it only chooses the reader's language and opens the groups that a filter leaves.
if (/^zh/i.test(navigator.language)) document.getElementById("zh").checked = true;
addEventListener("change", (event) => {
  if (event.target.name !== "show" || event.target.value === "all") return;
  for (const group of document.querySelectorAll("details.group")) group.open = true;
});
