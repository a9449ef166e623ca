// Light or dark: the choice made here, else the system's.
const KEY = "visit-pacer-theme";

const chosen = () => localStorage.getItem(KEY);
const preferred = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

export const theme = () => chosen() ?? preferred();

export function applyTheme() {
  document.documentElement.dataset.theme = theme();
}

export function switchTheme() {
  localStorage.setItem(KEY, theme() === "dark" ? "light" : "dark");
  applyTheme();
}

// A colour of the style sheet, by its name.
export const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
