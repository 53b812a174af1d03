/** The weights that visitors choose from, the default first: names of pretrained weights. */
export const WEIGHTS = [
  { name: "general", label: "General: many kinds of rain" },
  { name: "rain100l", label: "Rain100L: thin, bright streaks" },
];
