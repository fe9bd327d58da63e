/* rates_test.c: the bubble rates that the Zero Bubble paper prints (arXiv 2401.10241, tables 5 and
 * 8), from the costs it measured: (C - work) / C, C the longest rank's own first start to last end.
 * Who builds and times schedules as the authors do prints the same four digits. */
#include "tests/unit/pipeline/tables.h"

typedef struct rates {
  int p, m;
  double f, i, w, transfer; /* ms */
  double of_1f1b, zb_h1, zb_h2;
} rates;

static const rates published[] = {
    /* table 5 */
    {8, 24, 18.522, 18.086, 9.337, .601, .2431, .1585, .1083},
    {8, 32, 18.513, 18.086, 9.331, .626, .1985, .1242, .0837},
    {8, 64, 18.546, 18.097, 9.321, .762, .1240, .0674, .0444},
    {8, 24, 29.718, 29.444, 19.927, .527, .2347, .1323, .0698},
    {8, 32, 29.802, 29.428, 19.530, .577, .1898, .1045, .0559},
    {8, 64, 29.935, 29.621, 19.388, .535, .1091, .0554, .0294},
    {16, 48, 11.347, 11.248, 8.132, .377, .2552, .1397, .0672},
    {16, 64, 11.307, 11.254, 8.101, .379, .2082, .1088, .0516},
    {16, 128, 11.325, 11.308, 8.109, .378, .1251, .0576, .0266},
    {32, 96, 10.419, 10.207, 7.715, .408, .2646, .1421, .0641},
    {32, 128, 10.408, 10.204, 7.703, .408, .2168, .1106, .0490},
    {32, 256, 10.402, 10.248, 7.698, .460, .1352, .0594, .0257},
    /* table 8; per half stage there: doubled, but for the transfer */
    {16, 48, 28.814, 28.760, 19.352, 1.610, .2668, .1536, .0823},
    {16, 64, 28.824, 28.786, 19.376, 1.621, .2206, .1198, .0630},
    {16, 128, 28.632, 28.612, 19.278, 1.619, .1390, .0637, .0325},
    {24, 72, 13.526, 13.938, 10.502, .755, .2699, .1439, .0628},
    {24, 96, 13.566, 13.968, 10.518, .758, .2229, .1121, .0480},
    {24, 192, 13.570, 13.980, 10.520, .770, .1403, .0595, .0247},
    {32, 96, 18.916, 19.496, 14.576, .879, .2676, .1429, .0629},
    {32, 128, 18.938, 19.488, 14.612, .892, .2204, .1111, .0478},
    {32, 256, 18.894, 19.288, 14.386, .887, .1362, .0593, .0251},
};
enum { n_published = sizeof published / sizeof published[0] };

static lam_simulated timed(const char *name, int v, const rates *x) {
  costs_of c;
  even_costs(x->f / v * 1e6, x->i / v * 1e6, x->w / v * 1e6, x->transfer * 1e6, x->p * v, &c);
  lam_schedule *s = built_of(name, x->p, v, x->m);
  const lam_simulated out = simulated(s, &c.costs);
  lam_schedule_destroy(s);
  return out;
}

static void check_rate(const char *name, const rates *x, double want) {
  NOTE("%s p %d m %d", name, x->p, x->m);
  const float got = (float)timed(name, 1, x).rank_bubble;
  CHECK_CLOSE(&got, &want, 1, 0, 0.00005 + 1e-7);
}

TEST(rates, are_the_63_that_were_published) {
  for (int k = 0; k < n_published; k++) {
    check_rate("1f1b", &published[k], published[k].of_1f1b);
    check_rate("zb-h1", &published[k], published[k].zb_h1);
    check_rate("zb-h2", &published[k], published[k].zb_h2);
  }
  CHECK_EQ(3 * n_published, 63);
}

/* ZBV in a fixed order, from table 8's costs: figures of our own, to see a change of order. */
TEST(rates, of_zbv_stay) {
  static const double want[3][2] = {{.0712, .0829}, {.0623, .0824}, {.0582, .0791}};
  for (int k = 0; k < 3; k++) {
    const rates *x = &published[12 + 3 * k];
    NOTE("p %d m %d", x->p, x->m);
    const lam_simulated out = timed("zbv", 2, x);
    const float got[2] = {(float)out.rank_bubble, (float)out.bubble};
    CHECK_CLOSE(got, want[k], 2, 0, 0.00005 + 1e-7);
  }
}
