// Taking a volume: chosen in the form or dropped anywhere on the page.

/** @param onFile Told the one file; onMany is told where several were dropped. */
export function takeFiles(input, page, onFile, onMany) {
  input.addEventListener("change", () => input.files.length && onFile(input.files[0]));
  page.addEventListener("dragover", (event) => {
    event.preventDefault(); // else the browser opens what is dropped
    page.classList.add("dragging");
  });
  page.addEventListener("dragleave", (event) => event.relatedTarget === null && page.classList.remove("dragging"));
  page.addEventListener("drop", (event) => {
    event.preventDefault();
    page.classList.remove("dragging");
    const { files } = event.dataTransfer;
    if (files.length > 1) onMany();
    else if (files.length) {
      input.files = files; // the form shows its name
      onFile(files[0]);
    }
  });
}
