// The pictures of the README, taken by hand from a running agent:
//   node screenshots.mjs http://127.0.0.1:8787 ROW_ID ../../deploy/pictures
import { chromium } from "playwright-core";

const [, , base, row, folder] = process.argv;
const desktop = { width: 1280, height: 800 };
const phone = { width: 390, height: 844 };
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
for (const [name, viewport, colorScheme, path, sign] of [
  ["dashboard", desktop, "light", "/", ".grid-row.body:not([hidden])"],
  ["dashboard-dark", desktop, "dark", "/", ".grid-row.body:not([hidden])"],
  ["dashboard-phone", phone, "light", "/", ".grid-row.body:not([hidden])"],
  ["dashboard-phone-dark", phone, "dark", "/", ".grid-row.body:not([hidden])"],
  ["row", desktop, "light", `/#/rows/${row}`, "#row canvas"],
  ["row-dark", desktop, "dark", `/#/rows/${row}`, "#row canvas"],
  ["row-phone", phone, "light", `/#/rows/${row}`, "#row canvas"],
  ["health", desktop, "light", "/#/health", "#events li"],
  ["health-dark", desktop, "dark", "/#/health", "#events li"],
  ["health-phone", phone, "dark", "/#/health", "#events li"],
]) {
  const page = await browser.newPage({ viewport, colorScheme });
  await page.goto(base + path);
  await page.locator(sign).first().waitFor();
  await page.waitForTimeout(7000);
  await page.screenshot({ path: `${folder}/${name}.png` });
  await page.close();
}
await browser.close();
